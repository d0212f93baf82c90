
#if defined(INTSEG_MVE)
#include <arm_mve.h>

/* Products of 8 bits need two factors of one signedness: values less 128 are signed as the weights are. */
#define INTSEG_OFFSET 128

typedef uint8_t intseg_value;

static const intseg_value *intseg_window(const intseg_conv *conv, uint8_t *scratch, const uint8_t *in,
                                         const intseg_map *map, int32_t y, int32_t x) {
    intseg_gather(conv, scratch, in, map, y, x);
    for (int32_t i = 0; i < conv->row; i += 16) {
        mve_pred16_t rest = vctp8q((uint32_t)(conv->row - i));
        uint8x16_t values = vldrbq_z_u8(scratch + i, rest);
        vstrbq_p_u8(scratch + i, veorq_u8(values, vdupq_n_u8(128)), rest);
    }
    return scratch;
}

static void intseg_products(int32_t sums[4], const intseg_value *a, const intseg_value *b, const int8_t *v,
                            const int8_t *w, int32_t row) {
    int32_t av = sums[0], aw = sums[1], bv = sums[2], bw = sums[3];
    const int8_t *first = (const int8_t *)a, *second = (const int8_t *)b;
    for (; row >= 16; row -= 16, first += 16, second += 16, v += 16, w += 16) {
        int8x16_t weights = vldrbq_s8(v), more = vldrbq_s8(w);
        int8x16_t values = vldrbq_s8(first);
        av = vmladavaq_s8(av, values, weights);
        aw = vmladavaq_s8(aw, values, more);
        values = vldrbq_s8(second);
        bv = vmladavaq_s8(bv, values, weights);
        bw = vmladavaq_s8(bw, values, more);
    }
    if (row > 0) {
        mve_pred16_t rest = vctp8q((uint32_t)row);
        int8x16_t weights = vldrbq_z_s8(v, rest), more = vldrbq_z_s8(w, rest);
        int8x16_t values = vldrbq_z_s8(first, rest);
        av = vmladavaq_s8(av, values, weights);
        aw = vmladavaq_s8(aw, values, more);
        values = vldrbq_z_s8(second, rest);
        bv = vmladavaq_s8(bv, values, weights);
        bw = vmladavaq_s8(bw, values, more);
    }
    sums[0] = av, sums[1] = aw, sums[2] = bv, sums[3] = bw;
}
#endif
