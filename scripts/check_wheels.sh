#!/usr/bin/env bash
# Installs the three wheels into three fresh virtual environments, and uses each as a user would.
#   scripts/check_wheels.sh WHEELS FOLDER     PYTHON and TORCH as in the Makefile
set -euo pipefail
wheels=$(cd "$1" && pwd) scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
library=$(echo "$wheels"/unicp-[0-9]*.whl)
testbeds=$(echo "$wheels"/unicp_testbeds-[0-9]*.whl)
bench=$(echo "$wheels"/unicp_bench-[0-9]*.whl)
# A PYTHONPATH, or a folder with the sources, would hide what is not in the wheels.
unset PYTHONPATH PYTHONHOME VIRTUAL_ENV
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
rm -rf "$2"
mkdir -p "$2"
cd "$2"

# environment NAME WHAT... - a fresh environment with torch and these
environment() {
    local name=$1
    shift
    echo "== $name: $(basename -a "$@" | tr '\n' ' ')"
    "${PYTHON:-python3}" -m venv "$name"
    "$name/bin/python" -m pip install -qq --no-compile "torch==${TORCH:-2.13.0}" ||
        echo "no torch ${TORCH:-2.13.0} for this Python: taking the one that pip finds"
    "$name/bin/python" -m pip install -qq --no-compile "$@"
}

environment library "$library"
library/bin/python "$scripts/use_library.py"
if library/bin/unicp --version 2>said; then
    echo "asked: the command line without its extra; found: it started; do: look at what the library depends on" && exit 1
fi
grep -q 'pip install "unicp\[cli\]"' said

environment demo "$library[demo]" "$testbeds"
demo/bin/unicp generate "a red star moving left on a striped background" --steps 12 --frames 5 --out star.mp4
test -s star.mp4

environment bench "$library[bench]" "$bench" "$testbeds"
bench/bin/unicp bench --help >/dev/null
bench/bin/unicp bench quick --method balanced --prompts 1 --seeds 1 --steps 12 --frames 5 --fast-metrics --out rows.jsonl
bench/bin/unicp report rows.jsonl --out report.html
test -s report.html

rm -rf library demo bench # gigabytes, of which nobody needs more
echo "all three wheels were installed and used"
