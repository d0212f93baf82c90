
/* The mean over all positions: sums shifted left by `up` over the number of pixels shifted left by `down`. */
void intseg_average_pool(uint8_t *out, const uint8_t *in, const intseg_map *in_map, int32_t up, int32_t down,
                         int32_t high);
