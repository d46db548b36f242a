// The lower part of a report's page: memory, configuration, machine. Each appends a section, or nothing where the run did not
// record it.
#pragma once

#include "train/report/run_data.h"

// The memory plan as a bar and a table, beside the measured peak.
void details_memory(const RunData *data, Buffer *out);
// config.yaml with its keys and comments set apart.
void details_configuration(const RunData *data, Buffer *out);
// Versions and hosts.
void details_machine(const RunData *data, Buffer *out);
