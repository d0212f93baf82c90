
void intseg_resize_SUFFIX(const intseg_axis axes[2], ELEMENT *out, const intseg_map *out_map, const ELEMENT *in,
                      const intseg_map *in_map) {
    int32_t channels = in_map->channels;
    UNSIGNED divisor = (UNSIGNED)axes[0].denominator * (UNSIGNED)axes[1].denominator;
    for (int32_t y = 0; y < out_map->rows; y++) {
        intseg_tap row = intseg_tap_at(&axes[0], out_map->first + y);
        const ELEMENT *above = in + (row.first - in_map->first) * in_map->width * channels;
        const ELEMENT *below = in + (row.second - in_map->first) * in_map->width * channels;
        for (int32_t x = 0; x < out_map->width; x++) {
            intseg_tap column = intseg_tap_at(&axes[1], x);
            int32_t left = column.first * channels, right = column.second * channels;
            /* The four weights sum to the divisor. */
            WIDE bottom_right = (WIDE)row.weight * column.weight;
            WIDE bottom_left = (WIDE)row.weight * (axes[1].denominator - column.weight);
            WIDE top_right = (WIDE)(axes[0].denominator - row.weight) * column.weight;
            WIDE top_left = (WIDE)(axes[0].denominator - row.weight) * (axes[1].denominator - column.weight);
            for (int32_t c = 0; c < channels; c++) {
                WIDE sum = top_left * above[left + c] + top_right * above[right + c] + bottom_left * below[left + c] +
                           bottom_right * below[right + c];
                UNSIGNED magnitude = sum < 0 ? 0u - (UNSIGNED)sum : (UNSIGNED)sum;
                UNSIGNED floor = magnitude / divisor, twice = 2u * (magnitude - floor * divisor);
                if (twice > divisor || (twice == divisor && (floor & 1u) != 0)) {
                    floor++;
                }
                *out++ = (ELEMENT)(sum < 0 ? -(WIDE)floor : (WIDE)floor);
            }
        }
    }
}
