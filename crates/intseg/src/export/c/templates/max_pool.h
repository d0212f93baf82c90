
void intseg_max_pool_SUFFIX(const int32_t kernel[2], const int32_t stride[2], const int32_t padding[2], ELEMENT *out,
                        const intseg_map *out_map, const ELEMENT *in, const intseg_map *in_map);
