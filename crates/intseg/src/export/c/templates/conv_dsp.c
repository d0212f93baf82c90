
#if defined(INTSEG_DSP)
#define INTSEG_OFFSET 0

/* Words of the scratch's bytes. */
typedef uint32_t __attribute__((may_alias)) intseg_value;

#define INTSEG_EXTEND(name, instruction)                                    \
    static inline uint32_t name(uint32_t bytes) {                           \
        uint32_t pair;                                                      \
        __asm__(instruction : "=r"(pair) : "r"(bytes));                     \
        return pair;                                                        \
    }
INTSEG_EXTEND(intseg_even_unsigned, "uxtb16 %0, %1")
INTSEG_EXTEND(intseg_odd_unsigned, "uxtb16 %0, %1, ror #8")
INTSEG_EXTEND(intseg_even_signed, "sxtb16 %0, %1")
INTSEG_EXTEND(intseg_odd_signed, "sxtb16 %0, %1, ror #8")

static inline int32_t intseg_pair(uint32_t a, uint32_t b, int32_t sum) {
    int32_t result;
    __asm__("smlad %0, %1, %2, %3" : "=r"(result) : "r"(a), "r"(b), "r"(sum));
    return result;
}

static inline uint32_t intseg_load(const void *bytes) {
    uint32_t word;
    memcpy(&word, bytes, 4);
    return word;
}

/* Widens a window to 16 bits once for all channels: of four bytes first the even ones, then the odd. The wide
 * window lies behind the bytes. */
static const intseg_value *intseg_window(const intseg_conv *conv, uint8_t *scratch, const uint8_t *in,
                                         const intseg_map *map, int32_t y, int32_t x) {
    intseg_value *wide = (intseg_value *)(void *)(scratch + conv->row);
    intseg_gather(conv, scratch, in, map, y, x);
    for (int32_t i = 0; i < conv->row; i += 4, wide += 2) {
        uint32_t bytes = intseg_load(scratch + i);
        wide[0] = intseg_even_unsigned(bytes);
        wide[1] = intseg_odd_unsigned(bytes);
    }
    return (const intseg_value *)(const void *)(scratch + conv->row);
}

static void intseg_products(int32_t sums[4], const intseg_value *a, const intseg_value *b, const int8_t *v,
                            const int8_t *w, int32_t row) {
    int32_t av = sums[0], aw = sums[1], bv = sums[2], bw = sums[3];
    const int8_t *end = v + row;
    do {
        uint32_t weights = intseg_load(v), more = intseg_load(w);
        uint32_t v0 = intseg_even_signed(weights), v1 = intseg_odd_signed(weights);
        uint32_t w0 = intseg_even_signed(more), w1 = intseg_odd_signed(more);
        uint32_t value = a[0];
        av = intseg_pair(value, v0, av);
        aw = intseg_pair(value, w0, aw);
        value = a[1];
        av = intseg_pair(value, v1, av);
        aw = intseg_pair(value, w1, aw);
        value = b[0];
        bv = intseg_pair(value, v0, bv);
        bw = intseg_pair(value, w0, bw);
        value = b[1];
        bv = intseg_pair(value, v1, bv);
        bw = intseg_pair(value, w1, bw);
        a += 2, b += 2, v += 4, w += 4;
    } while (v != end);
    sums[0] = av, sums[1] = aw, sums[2] = bv, sums[3] = bw;
}
#endif
