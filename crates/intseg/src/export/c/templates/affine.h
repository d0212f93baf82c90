
/* A multiplier, bias and shift a channel on 16 bits. Writes 8 bits to `out8`, or 16 to `out16` when that is NULL. */
void intseg_affine(const intseg_scale *scale, uint8_t *out8, int16_t *out16, const intseg_map *map, const int16_t *in);
