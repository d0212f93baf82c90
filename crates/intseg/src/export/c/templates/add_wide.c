
/* To nearest, ties to even, of a magnitude below 2^62. */
static int64_t intseg_half_even(int64_t value, uint32_t shift) {
    uint64_t magnitude = value < 0 ? 0u - (uint64_t)value : (uint64_t)value;
    uint64_t floor = magnitude >> shift, rest = magnitude & (((uint64_t)1 << shift) - 1u);
    uint64_t half = ((uint64_t)1 << shift) >> 1;
    if (rest > half || (rest == half && half != 0 && (floor & 1u) != 0)) {
        floor++;
    }
    return value < 0 ? -(int64_t)floor : (int64_t)floor;
}

static int64_t intseg_aligned(intseg_term term, int32_t i, int32_t shift) {
    int64_t value = term.narrow != NULL ? term.narrow[i] : term.wide[i];
    return shift >= 0 ? value * ((int64_t)1 << shift) : intseg_half_even(value, (uint32_t)-shift);
}

void intseg_add_wide(const intseg_sum *sum, uint8_t *out8, int16_t *out16, const intseg_map *map, intseg_term a,
                     intseg_term b) {
    int32_t count = map->rows * map->width * map->channels;
    for (int32_t i = 0; i < count; i++) {
        int64_t exact = intseg_aligned(a, i, sum->shifts[0]) + intseg_aligned(b, i, sum->shifts[1]);
        int64_t value = intseg_half_even(exact, (uint32_t)sum->shift);
        value = value < sum->low ? sum->low : value > sum->high ? sum->high : value;
        if (out8 != NULL) {
            out8[i] = (uint8_t)value;
        } else {
            out16[i] = (int16_t)value;
        }
    }
}
