# Every variable that we set for Open MPI, NCCL and LibTorch, each with its reason. Sourced by the
# launch scripts and by hand (`. launch/env.sh`); what is set already stays.

# The folder with bin/: the checkout's build, or the prefix that share/sala-train was installed into.
if [ -z "${SALA_BUILD:-}" ]; then
  SALA_BUILD=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  case $SALA_BUILD in
    */share/sala-train) SALA_BUILD=${SALA_BUILD%/share/sala-train} ;;
    *) SALA_BUILD=$SALA_BUILD/build ;;
  esac
fi

# Containers and rented machines run as root, which mpirun refuses without both of these.
export OMPI_ALLOW_RUN_AS_ROOT=${OMPI_ALLOW_RUN_AS_ROOT:-1}
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=${OMPI_ALLOW_RUN_AS_ROOT_CONFIRM:-1}
# More ranks than cores is a normal way to test; mpirun refuses it by default.
export OMPI_MCA_rmaps_base_oversubscribe=${OMPI_MCA_rmaps_base_oversubscribe:-1}
# mpirun binds each of one or two ranks to a single core, which would leave LibTorch one core of all.
export OMPI_MCA_hwloc_base_binding_policy=${OMPI_MCA_hwloc_base_binding_policy:-none}
# Copies between processes by CMA need a capability that containers lack; without it MPI only warns.
export OMPI_MCA_btl_vader_single_copy_mechanism=${OMPI_MCA_btl_vader_single_copy_mechanism:-none}

# NCCL says what went wrong, and nothing when all is well.
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}

# A rank that gives no sign of life for so long is taken for stopped or dead, and the job ends with a
# line that names it; slow ranks are waited for. 0 switches this off (a debugger stops a rank).
export SALA_WATCHDOG_SECONDS=${SALA_WATCHDOG_SECONDS:-30}
# While ranks wait for others and none moves for so long (no operation, no collective, no file), one
# is taken for stuck (a GPU that hangs in a kernel), and the job ends. 0: they wait for ever.
export SALA_STUCK_SECONDS=${SALA_STUCK_SECONDS:-1800}
