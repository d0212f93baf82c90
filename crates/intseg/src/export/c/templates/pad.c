
void intseg_pad(const int32_t padding[2], const uint8_t *pixel, uint8_t *out, const intseg_map *out_map,
                const uint8_t *in, const intseg_map *in_map) {
    for (int32_t i = 0; i < out_map->rows * out_map->width; i++) {
        int32_t y = out_map->first + i / out_map->width - padding[0];
        int32_t x = i % out_map->width - padding[1];
        int inside = y >= 0 && y < in_map->height && x >= 0 && x < in_map->width;
        const uint8_t *from = inside ? in + ((y - in_map->first) * in_map->width + x) * in_map->channels : pixel;
        memcpy(out + i * out_map->channels, from, (size_t)out_map->channels);
    }
}
