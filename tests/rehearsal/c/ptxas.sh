#!/bin/sh
# Runs the real ptxas, then appends the PTX to the cubin, because the stand-in gets only a module's image.
"REAL_PTXAS" "$@" || exit $?
for argument; do
    case "$argument" in *.ptx) ptx=$argument ;; esac
    [ "$previous" = -o ] && cubin=$argument
    previous=$argument
done
[ -z "$cubin" ] || [ -z "$ptx" ] && exit 0
{ printf '\nPTX of this cubin:\n'; cat "$ptx"; printf '\0'; } >> "$cubin"
