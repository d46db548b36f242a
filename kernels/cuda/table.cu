// The table of operations of a card. A function of the same name stands in the file of its operation.
#include "kernels/cuda/card.h"

namespace BACKEND {

#define ROW(operation, ...) .operation = operation,

extern const Operations operations;
const Operations operations = {.name = "card", .gated_products = true, EACH_OPERATION(ROW)};

}  // namespace BACKEND
