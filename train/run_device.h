// Which device a run computes on.
#pragma once

#include "kernels/device.h"
#include "train/run_config.h"

// Opens the device of a configuration for rank `host_rank` of `host_size` ranks on this host. "auto" is a card where this build
// and this host have one that is new enough, else the CPU. Cards are dealt to ranks in turn unless `card` is given.
Error *run_device_open(const RunConfig *config, int host_rank, int host_size, Device **out) MUST_CHECK;

// "fp32", "bf16", "fp16".
const char *data_type_name(DataType type);
