// The table behind data/files/system_advice.h.
#include "data/files/system_advice.h"

#include <cerrno>

namespace sala {

std::string system_advice(int code) {
  switch (code) {
    case EMFILE:
    case ENFILE:
      return "; raise the limit of open files (ulimit -n)";
    case EACCES:
    case EPERM:
      return "; check the permissions of the file and its folders";
    case ENOENT:
    case ENOTDIR:
      return "; check the path and its folders";
    case EIO:
    case ESTALE:
    case ETIMEDOUT:
    case ENXIO:
    case EREMOTEIO:
    case ENOTCONN:
    case ESHUTDOWN:
    case ECONNRESET:
    case EHOSTDOWN:
      return "; the disk or the connection to it fails: check the system's log, then run again";
    case ENOSPC:
    case EDQUOT:
      return "; free space and run again";
    case EFBIG:
      return "; the limit for the size of a file (ulimit -f) is reached";
    case EROFS:
      return "; the file system is mounted for reading only";
    case ENOMEM:
      return "; free memory and run again";
    default:
      return "";
  }
}

bool may_pass(int code) {
  switch (code) {
    case EIO:
    case ESTALE:
    case ETIMEDOUT:
    case EREMOTEIO:
    case ENOTCONN:
    case ESHUTDOWN:  // of a Lustre client that was evicted
    case ECONNRESET:
    case EHOSTDOWN:
    case EAGAIN:
      return true;
    default:
      return false;
  }
}

}  // namespace sala
