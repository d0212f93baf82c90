
/* Copies the window whose first tap lies at row `y` and column `x` of the input. */
static void intseg_gather(const intseg_conv *conv, uint8_t *window, const uint8_t *in, const intseg_map *map,
                          int32_t y, int32_t x) {
    int32_t channels = map->channels, columns = conv->kernel[1], step = conv->dilation[1];
    size_t row_len = (size_t)(columns * channels);
    for (int32_t ky = 0; ky < conv->kernel[0]; ky++, y += conv->dilation[0]) {
        if (y < 0 || y >= map->height) {
            memset(window, conv->zero, row_len);
        } else if (step == 1 && x >= 0 && x + columns <= map->width) {
            memcpy(window, in + ((y - map->first) * map->width + x) * channels, row_len);
        } else {
            for (int32_t kx = 0; kx < columns; kx++) {
                int32_t column = x + kx * step;
                uint8_t *to = window + kx * channels;
                if (column < 0 || column >= map->width) {
                    memset(to, conv->zero, (size_t)channels);
                } else {
                    memcpy(to, in + ((y - map->first) * map->width + column) * channels, (size_t)channels);
                }
            }
        }
        window += row_len;
    }
    memset(window, 0, (size_t)(conv->row - conv->taps));
}
