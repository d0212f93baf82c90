
void intseg_classify(const intseg_axis axes[2], uint8_t *classes, const intseg_map *out_map, const int16_t *logits,
                     const intseg_map *in_map, int32_t *row) {
    int32_t channels = in_map->channels, row_len = in_map->width * channels;
    for (int32_t y = 0; y < out_map->rows; y++) {
        intseg_tap tap = intseg_tap_at(&axes[0], out_map->first + y);
        const int16_t *above = logits + (tap.first - in_map->first) * row_len;
        const int16_t *below = logits + (tap.second - in_map->first) * row_len;
        int32_t weight = tap.weight, rest = axes[0].denominator - tap.weight;
        for (int32_t i = 0; i < row_len; i++) {
            row[i] = above[i] * rest + below[i] * weight;
        }
        for (int32_t x = 0; x < out_map->width; x++) {
            intseg_tap column = intseg_tap_at(&axes[1], x);
            const int32_t *left = row + column.first * channels, *right = row + column.second * channels;
            int32_t best = 0;
            WIDE other = axes[1].denominator - column.weight, largest = 0;
            for (int32_t c = 0; c < channels; c++) {
                WIDE value = left[c] * other + right[c] * (WIDE)column.weight;
                ROUND
                if (c == 0 || value > largest) {
                    largest = value;
                    best = c;
                }
            }
            *classes++ = (uint8_t)best;
        }
    }
}
