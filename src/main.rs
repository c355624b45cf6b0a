//! The `adit` program: see `adit::cli`.

fn main() -> std::process::ExitCode {
    adit::cli::main()
}
