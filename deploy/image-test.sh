#!/usr/bin/env bash
# Builds both images without Docker and runs them as the pod of deploy/kubernetes: buildah and runc, as root.
# Checked: contents, rights, health, predictions directly and through the gateway, ports, SIGTERM.
# The last line is JSON. Exit codes: 0 all passed, 1 a check failed, 2 a tool is missing.
#   make samples && deploy/image-test.sh [FOLDER]
# BASE: an image of Debian 12 with Python 3.11 and venv (default: made by debootstrap, from MIRROR);
# PYTHON: its pip gets the packages; KEEP=1: FOLDER stays, for a faster next run.
set -euo pipefail && cd "$(dirname "$0")/.."
folder=$(realpath -m "${1:-build/image}") pod=deploy/kubernetes/base/deployment.yaml
key=the-key-of-the-test-of-the-images network='' summary='' tries=0
declare -A image=([server]=localhost/audiocnn-cpu [gateway]=localhost/audiocnn-gateway) pid root
if [ "$(id -u)" != 0 ] || ! type buildah debootstrap runc jq yq tomlq curl ss >/dev/null; then
    echo "error: needs root, and apt-get install buildah debootstrap runc jq yq curl iproute2" >&2 && exit 2
fi

die() { echo "error: $*" >&2 && exit 1; }
step() { printf '%4d s  %s\n' "$SECONDS" "$*"; }
store() { buildah --storage-driver "$driver" --root "$folder/images" --runroot "$folder/run" "$@"; }
inside() { runc exec "audiocnn-$1-$$" "${@:2}"; }
ask() { nsenter --net="$network" curl --noproxy '*' --no-progress-meter --fail --max-time 60 "$@"; }
cleanup() {
    for role in gateway server; do runc delete --force "audiocnn-$role-$$" 2>/dev/null || true; done
    store rm --all >/dev/null
    [ "${KEEP:-}" ] || rm -rf "$folder"
}
mkdir -p "$folder" && driver=vfs # copies all layers below each one, where the file system cannot stack them
buildah --storage-driver overlay --root "$folder/probe" --runroot "$folder/probe" images &>/dev/null && driver=overlay
trap cleanup EXIT

if [ -z "${BASE:-}" ] && ! store images --format '{{.Name}}' | grep -qx localhost/audiocnn-base; then
    step "a minimal Debian 12"
    container=$(store from scratch) && system=$(store mount "$container") list=/etc/apt/sources.list
    debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$system" \
        ${MIRROR:+"$MIRROR"} &>"$folder/base.log" || die "$(tail "$folder/base.log")"
    ! grep -qs bookworm $list.d/debian.sources || { cp $list.d/debian.sources "$system$list.d" && rm "$system$list"; }
    store commit --quiet --rm "$container" localhost/audiocnn-base >/dev/null
fi
step "wheels of all packages, so that the builds need no index"
tomlq -r '.project | [.dependencies, (."optional-dependencies" | .client, .formats, .openvino, .torchserve, .gateway, .export)]
    | flatten[] | select(startswith("audiocnn-serve") | not)' pyproject.toml >"$folder/requirements.txt"
"${PYTHON:-.venv/bin/python}" -m pip wheel --quiet --wheel-dir "$folder/wheels" \
    --constraint deploy/constraints.txt --requirement "$folder/requirements.txt"

for role in gateway server; do
    step "the image of the $role" && log=$folder/$role.log
    store bud --quiet --isolation chroot --format docker --layers --pull-never --volume "$folder/wheels:/wheels:ro" \
        --build-arg "BASE_IMAGE=${BASE:-localhost/audiocnn-base}" --build-arg PIP_NO_INDEX=1 \
        --build-arg PIP_FIND_LINKS=/wheels --target "${image[$role]#*audiocnn-}" --tag "${image[$role]}" . \
        &>"$log" || die "$(tail -n 30 "$log")"
    root[$role]=$(store mount "$(store from --pull-never "${image[$role]}")")
    unwanted='cc|c\+\+|gcc|g\+\+|clang|make|javac|pip3?|torchaudio|tensorboard|matplotlib|onnxscript|pytest'
    if [ $role = gateway ]; then unwanted+='|torch|scipy|onnxruntime|ts'; else unwanted+='|onnx'; fi
    found=$(cd "${root[$role]}" && find app ! -user root && find usr/bin usr/local/bin opt/*/bin \
        opt/venv/lib/*/site-packages -maxdepth 1 -regextype posix-extended -regex ".*/($unwanted)")
    [ -z "$found" ] || die "in the image of the $role: $found"
done

for role in server gateway; do # a read-only root, no capabilities, one loopback; arguments and memory of the pod
    step "the $role starts" && bundle=$folder/$role && mkdir -p "$bundle" && runc spec --bundle "$bundle"
    config=$(store inspect --type image "${image[$role]}" | jq .Docker.config)
    yq ".spec.template.spec | .initContainers + .containers | .[] | select(.name == \"$role\")" $pod |
        jq --slurpfile spec "$bundle/config.json" --argjson image "$config" --arg root "${root[$role]}" \
            --arg network "$network" --arg key $key '. as $pod | $spec[0]
        | .root.path = $root
        | .process += {terminal: false, capabilities: {}, rlimits: [], cwd: $image.WorkingDir,
            user: ($image.User / ":" | {uid: (.[0] | tonumber), gid: (.[1] | tonumber)}),
            args: ($image.Entrypoint + ($pod.args // $image.Cmd)),
            env: ($image.Env + [$pod.env[]? | "\(.name)=\(.value // $key)"])}
        | .mounts += [("/tmp", "/var/log/audiocnn") | {destination: ., type: "tmpfs", source: "tmpfs",
            options: ["nosuid", "nodev", "mode=1777", "size=1g"]}]
        | .linux.resources.memory.limit = ($pod.resources.limits.memory
            | (.[:-2] | tonumber) * {Mi: 1048576, Gi: 1073741824}[.[-2:]])
        | if $network == "" then . else (.linux.namespaces[] | select(.type == "network")).path = $network end
        ' >"$bundle/new.json" && mv "$bundle/new.json" "$bundle/config.json"
    runc run --bundle "$bundle" "audiocnn-$role-$$" </dev/null &>"$bundle/log" & pid[$role]=$!
    mapfile -t check < <(jq -r '.Healthcheck.Test[1:][]' <<<"$config")
    until inside $role "${check[@]}" &>/dev/null; do
        { [ -d "/proc/${pid[$role]}" ] && ((++tries < 200)) && sleep 1; } || die "$(tail -n 50 "$bundle/log")"
    done
    network=${network:-/proc/$(runc state "audiocnn-server-$$" | jq .pid)/ns/net}
    rights=$(inside $role awk '/^(Uid|CapEff|NoNewPrivs)/ {print $2}' /proc/1/status | paste -sd' ')
    [ "$rights" = "10001 0000000000000000 1" ] || die "the $role has rights: $rights"
    ! inside $role touch /app/x /opt/x 2>/dev/null || die "the root of the $role is writable"
done

step "predictions" && sound=samples/rain.wav at=http://127.0.0.1
direct=$(ask --upload-file $sound $at:8080/predictions/audiocnn | jq -c '.predictions[0]')
through=$(ask --header "X-API-Key: $key" --form "file=@$sound" $at:8000/predict | jq -c '.predictions[0]')
[[ $direct = "$through" && $direct = *'"rain"'* ]] || die "directly $direct, through the gateway $through"
ask --header "X-API-Key: $key" --fail-early $at:{8000/ready,8000/,8001/metrics,8082/metrics} >/dev/null
open=$(nsenter --net="$network" ss -ltnH | awk '$4 !~ /127\.0\.0\.1\]?:/ {sub(/.*:/, "", $4); print $4}' | sort -un)
[ "$open" = "$(yq '.. | .containerPort? // empty' $pod | sort -n)" ] || die "open ports: $open"
for role in gateway server; do
    step "the $role stops" && began=$SECONDS peak=$(runc events --stats "audiocnn-$role-$$" | jq .data.memory.usage.max)
    runc kill "audiocnn-$role-$$" TERM
    { timeout 40 tail --pid="${pid[$role]}" -f /dev/null && wait "${pid[$role]}"; } || die "the $role: exit code $?"
    summary+="{\"$role\": {\"megabytes\": $(du -smx "${root[$role]}" | cut -f1), \"peak_memory_mib\": $((peak >> 20)),
        \"stop_seconds\": $((SECONDS - began))}}"
done
jq -cs --argjson prediction "$direct" --argjson seconds $SECONDS 'add + {$prediction, $seconds}' <<<"$summary"
