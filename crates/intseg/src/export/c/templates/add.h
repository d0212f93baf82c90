
/* Writes 8 bits to `out8`, or 16 to `out16` when that is NULL. */
void intseg_add(const intseg_sum *sum, uint8_t *out8, int16_t *out16, const intseg_map *map, intseg_term a,
                intseg_term b);
