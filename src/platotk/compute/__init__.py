"""Where a command line runs: in a detached process, on a Ray cluster, on N machines that form one."""
