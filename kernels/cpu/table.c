// The CPU backend's table of operations, one per instruction set (cpu.h).
#include "kernels/cpu/cpu.h"

#define TEXT_(name) #name
#define TEXT(name) TEXT_(name)
#define ROW(operation, ...) .operation = CPU_NAME(cpu_##operation),

const Operations CPU_NAME(cpu_operations) = {.name = "cpu " TEXT(CPU_VARIANT), EACH_OPERATION(ROW)};
