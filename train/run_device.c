// Which device a run computes on: see run_device.h.
#include "train/run_device.h"

#include "core/log.h"

const char *data_type_name(DataType type) {
    static const char *const names[] = {[TYPE_FP32] = "fp32", [TYPE_BF16] = "bf16", [TYPE_FP16] = "fp16"};
    return names[type];
}

static int usable_cards(const DeviceDescription *cards) {
    int usable = 0;
    for (int i = 0; i < cards->cards; i++) {
        usable += cards->card[i].usable;
    }
    return usable;
}

// The kind that "auto" stands for here. That there is no card is no error; that a card cannot be used is worth a line.
static DeviceKind choose(RunDevice wanted) {
    if (wanted != RUN_DEVICE_AUTO) {
        return wanted == RUN_DEVICE_CUDA ? DEVICE_CUDA : wanted == RUN_DEVICE_SIMULATED ? DEVICE_SIMULATED : DEVICE_CPU;
    }
    DeviceDescription cards;
    Error *error = device_built(DEVICE_CUDA) ? device_describe_cards(DEVICE_CUDA, &cards) : NULL;
    if (!device_built(DEVICE_CUDA) || error != NULL) {
        error_free(error);
        return DEVICE_CPU;
    }
    if (cards.cards > 0 && usable_cards(&cards) == 0) {
        log_warning("no card here is new enough (sm_80 or later), so the CPU computes");
    }
    return usable_cards(&cards) > 0 ? DEVICE_CUDA : DEVICE_CPU;
}

Error *run_device_open(const RunConfig *config, int host_rank, int host_size, Device **out) {
    DeviceKind kind = choose((RunDevice)config->device);
    int share = threads_available() / (host_size > 0 ? host_size : 1);
    int threads = config->threads > 0 ? (int)config->threads : share > 1 ? share : 1;
    RunType type = (RunType)config->train.type;
    if (kind == DEVICE_CPU) {
        if (type != RUN_TYPE_AUTO && type != RUN_TYPE_FP32) {
            return failure("train.type is %s, but the CPU computes in fp32; leave it at auto", run_type_names[type]);
        }
        return device_open_cpu(threads, config->instruction_set, out);
    }
    DeviceDescription cards;
    TRY(device_describe_cards(kind, &cards));
    if (cards.cards == 0) {
        return failure("device is %s, but this host has no card", run_device_names[config->device]);
    }
    int card = config->card >= 0 ? (int)config->card : host_rank % cards.cards;
    DataType element = type == RUN_TYPE_FP32 ? TYPE_FP32 : type == RUN_TYPE_FP16 ? TYPE_FP16 : TYPE_BF16;
    TRY(device_open_card(kind, card, element, threads, out));
    return device_set_products(*out, config->products);
}
