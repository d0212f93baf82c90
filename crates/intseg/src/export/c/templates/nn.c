#include "intseg_nn.h"

#include <string.h>
