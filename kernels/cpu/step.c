// The end of a step: sums of losses, the decision about the update (contracts in kernels.h).
//
// The sums run over rows in order; a few operations a row against the millions that made its loss, so one thread does them.
#include "kernels/cpu/cpu.h"
#include "kernels/update.h"

void CPU_NAME(cpu_loss_sums)(Device *device, const LossSums *a) {
    double loss = 0, z = 0, weight = 0;
    for (int64_t r = 0; r < a->rows; r++) {
        double w = (double)a->loss_weights[r];
        if (w != 0) {
            loss += w * (double)a->losses[r];
            z += a->zs != NULL ? w * ((double)a->zs[r] * (double)a->zs[r]) : 0;
            weight += w;
        }
    }
    a->control->loss_sum += loss;
    a->control->z_sum += z;
    a->control->weight_sum += weight;
}

void CPU_NAME(cpu_step_decide)(Device *device, const StepDecide *a) {
    step_decide_control(a, a->control);
}
