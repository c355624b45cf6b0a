# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_adit_global_optspecs
    string join \n f/foreground log-level= log-format= metrics= dumpable threads= spin-us= cpus= V/version h/help
end

function __fish_adit_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_adit_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_adit_using_subcommand
    set -l cmd (__fish_adit_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c adit -n "__fish_adit_needs_command" -l log-level -d 'How much to log to standard error; the default is error' -r -f -a "verbose\t''
debug\t''
error\t''
silent\t''"
complete -c adit -n "__fish_adit_needs_command" -l log-format -d 'How to write the log: as text, the default, or as JSON, an object for each line' -r -f -a "text\t''
json\t''"
complete -c adit -n "__fish_adit_needs_command" -l metrics -d 'Serve metrics and probes by HTTP on this address and port, to whoever can reach it' -r
complete -c adit -n "__fish_adit_needs_command" -l threads -d 'How many workers there are, from 1 to 16; the default is one for each processor' -r
complete -c adit -n "__fish_adit_needs_command" -l spin-us -d 'How many microseconds a worker looks for more before it sleeps, up to 1000; 0 for not at all' -r
complete -c adit -n "__fish_adit_needs_command" -l cpus -d 'Pin the workers to these processors, in this order, such as 0,2-3' -r
complete -c adit -n "__fish_adit_needs_command" -s f -l foreground -d 'Stay in the foreground instead of going on as a background process'
complete -c adit -n "__fish_adit_needs_command" -l dumpable -d 'Allow core dumps, which may hold keys, and debuggers'
complete -c adit -n "__fish_adit_needs_command" -s V -l version -d 'Print the version and how the program was built'
complete -c adit -n "__fish_adit_needs_command" -s h -l help -d 'Print help'
complete -c adit -n "__fish_adit_needs_command" -a "genkey" -d 'Generates a new private key and writes it to stdout'
complete -c adit -n "__fish_adit_needs_command" -a "genpsk" -d 'Generates a new preshared key and writes it to stdout'
complete -c adit -n "__fish_adit_needs_command" -a "pubkey" -d 'Reads a private key from stdin and writes its public key to stdout'
complete -c adit -n "__fish_adit_needs_command" -a "proxy" -d 'Gives proxies and forwards into a tunnel, without an interface or a privilege'
complete -c adit -n "__fish_adit_needs_command" -a "ping" -d 'Asks hosts inside a sidecar\'s tunnel whether they are there'
complete -c adit -n "__fish_adit_needs_command" -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c adit -n "__fish_adit_using_subcommand genkey" -s h -l help -d 'Print help'
complete -c adit -n "__fish_adit_using_subcommand genpsk" -s h -l help -d 'Print help'
complete -c adit -n "__fish_adit_using_subcommand pubkey" -s h -l help -d 'Print help'
complete -c adit -n "__fish_adit_using_subcommand proxy" -s c -l config -d 'The file that says what to do' -r -F
complete -c adit -n "__fish_adit_using_subcommand proxy" -s i -l info -d 'Serve /livez, /readyz and /metrics here if the file has no [Metrics]' -r
complete -c adit -n "__fish_adit_using_subcommand proxy" -s n -l check -l configtest -d 'Only say whether the file is right, and what is wrong with it'
complete -c adit -n "__fish_adit_using_subcommand proxy" -s s -l silent -d 'Log nothing, whatever the file says'
complete -c adit -n "__fish_adit_using_subcommand proxy" -s d -l daemon -d 'Not there: the sidecar stays in the foreground'
complete -c adit -n "__fish_adit_using_subcommand proxy" -s h -l help -d 'Print help'
complete -c adit -n "__fish_adit_using_subcommand ping" -s c -l config -d 'The sidecar\'s file' -r -F
complete -c adit -n "__fish_adit_using_subcommand ping" -l count -d 'How often to ask each host, once a second' -r
complete -c adit -n "__fish_adit_using_subcommand ping" -s W -l timeout -d 'How long to wait for an answer; a handshake is tried again after five seconds' -r
complete -c adit -n "__fish_adit_using_subcommand ping" -s h -l help -d 'Print help'
complete -c adit -n "__fish_adit_using_subcommand help; and not __fish_seen_subcommand_from genkey genpsk pubkey proxy ping help" -f -a "genkey" -d 'Generates a new private key and writes it to stdout'
complete -c adit -n "__fish_adit_using_subcommand help; and not __fish_seen_subcommand_from genkey genpsk pubkey proxy ping help" -f -a "genpsk" -d 'Generates a new preshared key and writes it to stdout'
complete -c adit -n "__fish_adit_using_subcommand help; and not __fish_seen_subcommand_from genkey genpsk pubkey proxy ping help" -f -a "pubkey" -d 'Reads a private key from stdin and writes its public key to stdout'
complete -c adit -n "__fish_adit_using_subcommand help; and not __fish_seen_subcommand_from genkey genpsk pubkey proxy ping help" -f -a "proxy" -d 'Gives proxies and forwards into a tunnel, without an interface or a privilege'
complete -c adit -n "__fish_adit_using_subcommand help; and not __fish_seen_subcommand_from genkey genpsk pubkey proxy ping help" -f -a "ping" -d 'Asks hosts inside a sidecar\'s tunnel whether they are there'
complete -c adit -n "__fish_adit_using_subcommand help; and not __fish_seen_subcommand_from genkey genpsk pubkey proxy ping help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
