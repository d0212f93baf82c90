
#if defined(INTSEG_PLAIN)
/* What was subtracted from the windows' values. */
#define INTSEG_OFFSET 0

typedef uint8_t intseg_value;

/* A pixel is its own window when the kernel is 1x1 and no rest has to be filled up. */
static const intseg_value *intseg_window(const intseg_conv *conv, uint8_t *scratch, const uint8_t *in,
                                         const intseg_map *map, int32_t y, int32_t x) {
    if (conv->taps == map->channels && conv->row == conv->taps && conv->padding[0] == 0 && conv->padding[1] == 0) {
        return in + ((y - map->first) * map->width + x) * map->channels;
    }
    intseg_gather(conv, scratch, in, map, y, x);
    return scratch;
}

/* Adds the products of two windows and two channels: a value loaded serves twice. */
static void intseg_products(int32_t sums[4], const intseg_value *a, const intseg_value *b, const int8_t *v,
                            const int8_t *w, int32_t row) {
    int32_t av = sums[0], aw = sums[1], bv = sums[2], bw = sums[3];
    const int8_t *end = v + row;
    do {
#define INTSEG_TAP(i)             \
    av += (int32_t)a[i] * v[i];   \
    aw += (int32_t)a[i] * w[i];   \
    bv += (int32_t)b[i] * v[i];   \
    bw += (int32_t)b[i] * w[i];
        INTSEG_TAP(0)
        INTSEG_TAP(1)
        INTSEG_TAP(2)
        INTSEG_TAP(3)
#undef INTSEG_TAP
        a += 4, b += 4, v += 4, w += 4;
    } while (v != end);
    sums[0] = av, sums[1] = aw, sums[2] = bv, sums[3] = bw;
}
#endif
