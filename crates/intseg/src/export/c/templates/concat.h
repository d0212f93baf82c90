
/* Copies the channels of `in` to those of `out` from `channel` on. */
void intseg_concat(uint8_t *out, const intseg_map *out_map, int32_t channel, const uint8_t *in,
                   const intseg_map *in_map);
