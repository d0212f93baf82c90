
void intseg_concat(uint8_t *out, const intseg_map *out_map, int32_t channel, const uint8_t *in,
                   const intseg_map *in_map) {
    in += intseg_skip(in_map, out_map);
    for (int32_t i = 0; i < out_map->rows * out_map->width; i++) {
        memcpy(out + i * out_map->channels + channel, in + i * in_map->channels, (size_t)in_map->channels);
    }
}
