/* Installed setuid root: says whom that made it. no_new_privs keeps it the caller. */
#include <stdio.h>
#include <unistd.h>

int main(void) {
  printf("Effective uid: %d\n", (int)geteuid());
  return 0;
}
