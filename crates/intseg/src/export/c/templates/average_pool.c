
void intseg_average_pool(uint8_t *out, const uint8_t *in, const intseg_map *in_map, int32_t up, int32_t down,
                         int32_t high) {
    int32_t channels = in_map->channels, pixels = in_map->height * in_map->width;
    uint64_t divisor = (uint64_t)pixels << down;
    for (int32_t c = 0; c < channels; c++) {
        uint32_t sum = 0;
        for (int32_t i = 0; i < pixels; i++) {
            sum += in[i * channels + c];
        }
        uint64_t dividend = (uint64_t)sum << up;
        uint64_t mean = dividend / divisor, twice = 2u * (dividend % divisor);
        if (twice > divisor || (twice == divisor && (mean & 1u) != 0)) {
            mean++;
        }
        out[c] = (uint8_t)(mean > (uint64_t)high ? (uint64_t)high : mean);
    }
}
