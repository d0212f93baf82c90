
void intseg_convolve(const intseg_conv *conv, uint8_t *out8, int16_t *out16, const intseg_map *out_map,
                     const uint8_t *in, const intseg_map *in_map, uint8_t *scratch) {
    int32_t channels = out_map->channels, pixels = out_map->rows * out_map->width;
    int32_t y = out_map->first * conv->stride[0] - conv->padding[0], x = 0;
    /* Two pixels and two channels at a time; a last one alone is computed twice and written once. */
    for (int32_t pixel = 0; pixel < pixels; pixel += 2) {
        const intseg_value *windows[2];
        int32_t both = pixel + 1 < pixels;
        for (int32_t i = 0; i <= both; i++) {
            windows[i] = intseg_window(conv, scratch + i * (INTSEG_CONV_SCRATCH(conv->row) / 2), in, in_map, y,
                                       x * conv->stride[1] - conv->padding[1]);
            if (++x == out_map->width) {
                x = 0;
                y += conv->stride[0];
            }
        }
        if (!both) {
            windows[1] = windows[0];
        }
        for (int32_t c = 0; c < channels; c += 2) {
            int32_t next = c + 1 < channels ? c + 1 : c;
            int32_t start = (INTSEG_OFFSET - conv->zero) * conv->weight_sums[c];
            int32_t next_start = (INTSEG_OFFSET - conv->zero) * conv->weight_sums[next];
            int32_t sums[4] = {start, next_start, start, next_start};
            intseg_products(sums, windows[0], windows[1], conv->weights + c * conv->row,
                            conv->weights + next * conv->row, conv->row);
            for (int32_t i = 0; i <= both; i++) {
                int32_t at = (pixel + i) * channels;
                int32_t value = intseg_requantize(sums[2 * i], &conv->scale, c);
                int32_t next_value = intseg_requantize(sums[2 * i + 1], &conv->scale, next);
                if (out8 != NULL) {
                    out8[at + c] = (uint8_t)value;
                    out8[at + next] = (uint8_t)next_value;
                } else {
                    out16[at + c] = (int16_t)value;
                    out16[at + next] = (int16_t)next_value;
                }
            }
        }
    }
}
