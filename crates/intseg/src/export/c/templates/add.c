
/* Left shifts are at most 14 and the right shift at most 30: sums and halves fit 32 bits. */
void intseg_add(const intseg_sum *sum, uint8_t *out8, int16_t *out16, const intseg_map *map, intseg_term a,
                intseg_term b) {
    int32_t count = map->rows * map->width * map->channels;
    int32_t p = (int32_t)1 << sum->shifts[0], q = (int32_t)1 << sum->shifts[1];
    uint32_t shift = (uint32_t)sum->shift, half = (1u << shift) >> 1, rest = (1u << shift) - 1u;
    for (int32_t i = 0; i < count; i++) {
        int32_t value = (a.narrow != NULL ? a.narrow[i] : a.wide[i]) * p + (b.narrow != NULL ? b.narrow[i] : b.wide[i]) * q;
        if (shift > 0) {
            /* As in intseg_requantize, with 2^31 in place of 2^63. */
            uint32_t moved = (uint32_t)value + half + 0x80000000u, floor = moved >> shift;
            if ((moved & rest) == 0) {
                floor -= floor & 1u;
            }
            value = (int32_t)floor - (int32_t)(1u << (31u - shift));
        }
        value = value < sum->low ? sum->low : value > sum->high ? sum->high : value;
        if (out8 != NULL) {
            out8[i] = (uint8_t)value;
        } else {
            out16[i] = (int16_t)value;
        }
    }
}
