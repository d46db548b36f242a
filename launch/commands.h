// The list of subcommands, in the order in which help shows them. A new one is a file launch/NAME.c that defines
// `const Command command_NAME`, and a line here.
#pragma once

#include "launch/command.h"

// clang-format off
#define COMMANDS \
    COMMAND(data_pack) \
    COMMAND(data_build) \
    COMMAND(data_info) \
    COMMAND(tokenizer_train) \
    COMMAND(tokenizer_encode) \
    COMMAND(tokenizer_decode) \
    COMMAND(tokenizer_info) \
    COMMAND(configs) \
    COMMAND(train) \
    COMMAND(generate) \
    COMMAND(eval) \
    COMMAND(inspect) \
    COMMAND(checkpoint_verify) \
    COMMAND(checkpoint_list) \
    COMMAND(checkpoint_prune) \
    COMMAND(checkpoint_reshard) \
    COMMAND(report) \
    COMMAND(doctor)
// clang-format on

#define COMMAND(name) extern const Command command_##name;
COMMANDS
#undef COMMAND
