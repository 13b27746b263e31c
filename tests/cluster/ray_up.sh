#!/bin/bash
# The whole life of an on-prem cluster over real ssh, on one machine: `ray up`, a job, a request, `ray down`.
#
#     operator 10.77.0.1 ── ssh ──▶ head 10.77.0.2 ── ssh ──▶ worker 10.77.0.3          one bridge, no way out
#     ray up, ray job submit        draft, verifier            target
#
# Each host is an sshd with a network, processes and a home of its own. All three live in namespaces of this script, so
# that the kernel ends and removes everything when it ends, however it ends. The hosts get cluster.local.yaml as it is
# but for addresses, user and key, and without vLLM. They cannot download: they find the libraries of $PYTHON's environment
# instead.
#
# Needs root, Linux, and the packages curl, iproute2, openssh-server, rsync. Takes about two minutes.
# Use: PYTHON=.venv/bin/python tests/cluster/ray_up.sh
set -euo pipefail
cd "$(dirname "$0")/../.."

if [ -z "${INSIDE_NAMESPACES:-}" ]; then
  export INSIDE_NAMESPACES=1
  exec unshare --net --mount --pid --fork --kill-child --mount-proc "$0"
fi

python=$(realpath --no-symlinks "${PYTHON:-.venv/bin/python}")
mount -t tmpfs tmpfs /run # network namespaces, sshd and the hosts' files; gone with the namespace
mkdir -p /run/netns /run/sshd
ssh_sockets=/tmp/ray_ssh_$(id -un | tr -d '\n' | sha256sum | cut -c 1-10) # Ray's place for the connections it keeps open
mkdir -p "$ssh_sockets"
mount -t tmpfs tmpfs "$ssh_sockets"
export TMPDIR=/run/operator RAY_TMPDIR=/run/operator RAY_USAGE_STATS_ENABLED=0 HOME=/run/operator
mkdir -p "$RAY_TMPDIR"
ray() { "$python" -m ray.scripts.scripts "$@"; }

# The hosts share this machine's memory and cores with all else on it: Ray is not to kill its workers for the memory that
# others use, and to wait for a node that starts slowly.
patience="RAY_memory_monitor_refresh_ms=0 RAY_raylet_start_wait_time_s=240"

# -- hosts ----------------------------------------------------------------------------------------------------------

make_network() {
  ip link set lo up
  ip link add bridge type bridge
  ip address add 10.77.0.1/24 dev bridge
  ip link set bridge up
}

make_venv() { # path: an environment that borrows the libraries of $python, with commands of its own
  "$python" -m venv --without-pip "$1"
  "$python" -c 'import site; print(site.getsitepackages()[0])' > "$1/lib/$(ls "$1/lib")/site-packages/borrowed.pth"
  for command in ray serve; do
    sed "1s|.*|#!$1/bin/python|" "$(dirname "$python")/$command" > "$1/bin/$command"
    chmod +x "$1/bin/$command"
  done
}

make_host() { # name, address, resources
  local home=/run/$1
  mkdir -p "$home/dreamr" "$home/.ssh" # one file system is shared by both hosts: /run/shared, as /shared would be
  make_venv "$home/dreamr/.venv"
  echo "$3" > "$home/dreamr-resources.json"
  touch "$home/.bashrc"
  ip netns add "$1"
  ip link add "to-$1" type veth peer name eth0 netns "$1"
  ip link set "to-$1" master bridge up
  ip -n "$1" link set lo up
  ip -n "$1" address add "$2/24" dev eth0
  ip -n "$1" link set eth0 up
  ip -n "$1" route add default via 10.77.0.1 # leads nowhere, but Ray finds its own address by it
  ssh-keygen -q -t ed25519 -N '' -f "$home/host_key"
  cat > "$home/sshd_config" <<-END
	ListenAddress $2
	HostKey $home/host_key
	AuthorizedKeysFile /run/operator/key.pub
	PasswordAuthentication no
	StrictModes no
	PidFile none
	Subsystem sftp internal-sftp
	SetEnv TMPDIR=$home RAY_TMPDIR=$home RAY_USAGE_STATS_ENABLED=0 PIP_NO_INDEX=1 PIP_NO_BUILD_ISOLATION=0 $patience
	END
  # ssh takes the home from there, whatever $HOME says
  sed -E "s|^($(id -un):.*):[^:]*:([^:]*)$|\1:$home:\2|" /etc/passwd > "$home/passwd"
  ip netns exec "$1" unshare --pid --fork --kill-child --mount-proc --uts bash -c "
    hostname $1
    mount --bind $home/passwd /etc/passwd
    exec /usr/sbin/sshd -D -e -f $home/sshd_config" 2> "$home/sshd.log" &
}

# -- the cluster ----------------------------------------------------------------------------------------------------

write_config() { # the shipped file, with the addresses, user and key of these hosts, and the versions that they have
  "$python" -m pip freeze --exclude-editable --exclude dreamr > /run/operator/requirements-gpu.lock
  "$python" - > /run/operator/cluster.yaml <<-END
	import re, sys, yaml
	config = yaml.safe_load(open("cluster.local.yaml"))
	config["provider"] |= {"head_ip": "10.77.0.2", "worker_ips": ["10.77.0.3"]}
	config["auth"] = {"ssh_user": "$(id -un)", "ssh_private_key": "/run/operator/key"}
	config["file_mounts"]["~/dreamr/requirements-gpu.lock"] = "/run/operator/requirements-gpu.lock"
	config["setup_commands"] = [command.replace(",vllm]", "]") for command in config["setup_commands"]]
	runs = "export DREAMR_SAPO_CONFIG=~/dreamr/configs/smoke-sapo.yaml DREAMR_RUNS=/run/shared; "
	config["head_start_ray_commands"] = [
	    re.sub(r"DREAMR_RUNS=\S+ .*?dreamr-runs;", "; " + runs, command) for command in config["head_start_ray_commands"]
	]
	yaml.safe_dump(config, sys.stdout)
	END
}

explain() { # what the head tried, when something has failed
  [ $? = 0 ] || tail -n 40 /run/head/ray/session_latest/logs/monitor.* >&2
}

say() { printf '\n== %s\n' "$*"; }

trap explain EXIT
make_network
ssh-keygen -q -t ed25519 -N '' -f /run/operator/key
make_host head 10.77.0.2 '{"draft": 1, "verifier": 1}'
make_host worker 10.77.0.3 '{"target": 1}'
write_config
say "the token that every node and every client must have"
ray get-auth-token --generate > /dev/null

say "ray up"
ray up -y --no-config-cache /run/operator/cluster.yaml

say "a job on both nodes"
export RAY_AUTH_MODE=token
ray dashboard /run/operator/cluster.yaml > /run/operator/dashboard.log 2>&1 & # the tunnel to the head's port 8265
until (: < /dev/tcp/127.0.0.1/8265) 2> /dev/null; do sleep 0.5; done
ray job submit --address http://127.0.0.1:8265 --working-dir configs -- \
  dreamr demo --problems 1 --config embedded-cluster.yaml

say "a served request"
ray job submit --no-wait --address http://127.0.0.1:8265 --working-dir configs -- \
  serve run serve_app:build config=embedded-cluster.yaml
ray exec --port-forward 8000 /run/operator/cluster.yaml 'sleep 1d' > /run/operator/tunnel.log 2>&1 &
curl --silent --fail --output /dev/null --retry 120 --retry-delay 1 --retry-all-errors http://127.0.0.1:8000/v1/models
"$python" tests/cluster/ask.py http://127.0.0.1:8000/v1
ray exec /run/operator/cluster.yaml '. ~/.bashrc; RAY_AUTH_MODE=token serve shutdown -y'

say "training, by the commands that the documents give"
export RAY_ADDRESS=http://127.0.0.1:8265
ray job submit -- python rl/train.py
ray job submit --working-dir . -- python rl/train.py
unset RAY_ADDRESS

say "ray status"
ray exec /run/operator/cluster.yaml 'RAY_AUTH_MODE=token ray status'

say "ray down"
ray down -y /run/operator/cluster.yaml
# Ray stops the head; the workers find that out by themselves.
for _ in $(seq 100); do pgrep 'raylet|gcs_server' > /dev/null || break; sleep 1; done
if pgrep -a 'raylet|gcs_server'; then echo "these are still there" >&2; exit 1; fi
say "done"
