// Which device a run computes on.
#pragma once

#include "kernels/device.h"
#include "train/run_config.h"

// Opens the device of a configuration for rank `host_rank` of `host_size` ranks on this host. "auto" is a card where this build
// and this host have one, else the CPU; why cards that should be there cannot be used is said by rank 0 of the host. Cards are
// dealt to ranks in turn unless `card` is given.
Error *run_device_open(const RunConfig *config, int host_rank, int host_size, Device **out) MUST_CHECK;

// How many of the host's ranks share this card between them, when they are dealt in turn.
int run_device_sharers(const Device *device, int host_size);
