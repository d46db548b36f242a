// Which device a run computes on: see run_device.h.
#include "train/run_device.h"

#include "core/log.h"

// The kind that "auto" stands for here. That there is no card is no error, but a run that should have had one is slow.
static DeviceKind choose(RunDevice wanted, bool tell) {
    if (wanted != RUN_DEVICE_AUTO) {
        return wanted == RUN_DEVICE_CUDA ? DEVICE_CUDA : wanted == RUN_DEVICE_SIMULATED ? DEVICE_SIMULATED : DEVICE_CPU;
    }
    int cards = 0;
    Error *error = device_built(DEVICE_CUDA) ? device_count_cards(DEVICE_CUDA, &cards) : NULL;
    if (error != NULL && tell) {
        log_info("device=auto is the CPU: %s", error->message);
    }
    error_free(error);
    return cards > 0 ? DEVICE_CUDA : DEVICE_CPU;
}

Error *run_device_open(const RunConfig *config, int host_rank, int host_size, Device **out) {
    DeviceKind kind = choose((RunDevice)config->device, host_rank == 0);
    int share = threads_available() / (host_size > 0 ? host_size : 1);
    int threads = config->threads > 0 ? (int)config->threads : share > 1 ? share : 1;
    RunType type = (RunType)config->train.type;
    if (kind == DEVICE_CPU) {
        if (type != RUN_TYPE_AUTO && type != RUN_TYPE_FP32) {
            return failure("train.type is %s, but the CPU computes in fp32; leave it at auto", run_type_names[type]);
        }
        return device_open_cpu(threads, config->instruction_set, out);
    }
    int cards;
    TRY(device_count_cards(kind, &cards));
    int card = config->card >= 0 ? (int)config->card : host_rank % cards;
    DataType element = type == RUN_TYPE_FP32 ? TYPE_FP32 : type == RUN_TYPE_FP16 ? TYPE_FP16 : TYPE_BF16;
    TRY(device_open_card(kind, card, element, threads, out));
    return device_set_products(*out, run_products_names[config->products]);
}

int run_device_sharers(const Device *device, int host_size) {
    int cards = 0;
    error_free(device->kind != DEVICE_CPU ? device_count_cards(device->kind, &cards) : NULL);
    return cards > 0 ? (host_size + cards - 1) / cards : 1;
}
