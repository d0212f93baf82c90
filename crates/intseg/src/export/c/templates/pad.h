
/* Copies `in` and puts `pixel` around it. */
void intseg_pad(const int32_t padding[2], const uint8_t *pixel, uint8_t *out, const intseg_map *out_map,
                const uint8_t *in, const intseg_map *in_map);
