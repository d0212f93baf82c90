
void intseg_affine(const intseg_scale *scale, uint8_t *out8, int16_t *out16, const intseg_map *map,
                   const int16_t *in) {
    int32_t count = map->rows * map->width * map->channels, channel = 0;
    for (int32_t i = 0; i < count; i++) {
        int32_t value = intseg_requantize(in[i], scale, channel);
        if (out8 != NULL) {
            out8[i] = (uint8_t)value;
        } else {
            out16[i] = (int16_t)value;
        }
        channel = channel + 1 < map->channels ? channel + 1 : 0;
    }
}
