#!/bin/sh
# Object files compiled with an ISA's flags must not define symbols that the linker could share with the rest of the program
# (weak or unique ones: inline functions and templates), or AVX-512 code could end up where no AVX-512 is. Arguments: the objects.
found=0
for object in "$@"; do
  symbols=$(nm -C "$object" | grep -E ' [WVu] ' | grep -vE ' (DW\.ref|__asan|__tsan|__ubsan)')
  if [ -n "$symbols" ]; then
    echo "$object defines shared symbols:"
    echo "$symbols"
    found=1
  fi
done
[ $# -gt 0 ] || { echo "no objects given"; exit 1; }
exit $found
