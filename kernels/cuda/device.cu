// A card as a Device: opening it, memory, copies, waiting, graphs (contracts in kernels/device.h).
#include "kernels/cuda/card.h"

namespace BACKEND {

extern const Operations operations;

static Error *open_card(int ordinal, DataType type, Device **out) {
    return failure("no cards yet");
}

}  // namespace BACKEND

#define PASTE_(a, b) a##b
#define PASTE(a, b) PASTE_(a, b)
#define TEXT_(a) #a
#define TEXT(a) TEXT_(a)

extern "C" {
extern const DeviceBackend PASTE(BACKEND, _backend);
const DeviceBackend PASTE(BACKEND, _backend) = {
    .name = TEXT(BACKEND),
    .open = BACKEND::open_card,
};
}
