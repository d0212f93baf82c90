
/* As a sum in 64 bits, for shifts that 32 have no room for. */
void intseg_add_wide(const intseg_sum *sum, uint8_t *out8, int16_t *out16, const intseg_map *map, intseg_term a,
                     intseg_term b);
