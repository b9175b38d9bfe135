//! `make bench`: the speed of the program over real sockets on a real database that flushes,
//! compared with the speed of the database without it, in the same run.
//!
//! Everything shares this machine: the load generator and the downstream (this process, one
//! thread), the service, and a private PostgreSQL server. `cargo bench -p tests --bench service --
//! intake drain` measures those groups only. Without a name it measures all groups except
//! `compare`, `steady`, `pruning`, `segments`, `endurance` and `growth`, which needs about 15 GB of disk. `--with
//! PATH` names the other build that `compare` loads in turn with this one. `--runs N` and
//! `--seconds N` set how often and for how long each figure is measured (3 and 5). `--minutes N`
//! sets the length of each of the four long runs of `endurance` and of `steady` (10). `--only-postgres` and
//! `--only-sqlite` leave one database out, and `--outage-at-rate N` measures only the outage, at N
//! posts a second. The results are printed, and written to `target/bench/` as Markdown and JSON.

mod baseline;
mod cells;
mod endurance;
mod gauge;
mod reach;
mod report;
mod world;

use cells::Bench;
use std::process::Command;
use std::time::Duration;
use tests::program::program;

type Group = (&'static str, bool);

/// The groups, and whether they are measured by default.
const GROUPS: [Group; 21] = [
    ("intake", true),
    ("drain", true),
    ("sustained", true),
    ("rest", true),
    ("idle", true),
    ("duplicates", true),
    ("failures", true),
    ("bodies", true),
    ("keys", true),
    ("sources", true),
    ("memory", true),
    ("processes", true),
    ("sqlite", true),
    ("planning", true),
    ("scaling", true),
    ("compare", false),
    ("steady", false),
    ("pruning", false),
    ("segments", false),
    ("growth", false),
    ("endurance", false),
];

fn main() {
    let (mut wanted, mut runs, mut seconds) = (Vec::new(), 3_u32, 5_u32);
    let mut endurance = endurance::Wanted::default();
    let mut arguments = std::env::args().skip(1);
    let mut other_program = None;
    while let Some(argument) = arguments.next() {
        if argument == "--with" {
            other_program = arguments.next();
            continue;
        }
        let mut number =
            || arguments.next().and_then(|number| number.parse().ok()).expect("a number");
        match argument.as_str() {
            // cargo passes this to every benchmark.
            "--bench" => {}
            "--runs" => runs = number(),
            "--seconds" => seconds = number(),
            "--minutes" => endurance.time = Duration::from_mins(number().into()),
            "--outage-at-rate" => endurance.outage_at_rate = Some(number()),
            "--only-postgres" => endurance.databases.retain(|on| *on == world::On::Postgres),
            "--only-sqlite" => endurance.databases.retain(|on| *on == world::On::Sqlite),
            name => wanted.push(name.to_owned()),
        }
    }
    for name in &wanted {
        assert!(
            GROUPS.iter().any(|group| group.0 == name),
            "unknown group {name}; the groups are {GROUPS:?}"
        );
    }
    if cfg!(debug_assertions) {
        panic!("the benchmark is built without optimizations: run it with `cargo bench`");
    }
    let head = head();
    println!("{head}");
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let report = runtime.block_on(async {
        let mut bench = Bench::new(runs, Duration::from_secs(seconds.into()), endurance).await;
        bench.other_program = other_program.map(|path| &*path.leak());
        for (name, by_default) in GROUPS {
            if wanted.iter().any(|wanted| wanted == name) || (wanted.is_empty() && by_default) {
                bench.measure(name).await;
            }
        }
        bench.into_report()
    });
    let reach = reach::table(&report);
    println!("\n{reach}");
    let folder =
        program().ancestors().nth(2).expect("the program is in a target folder").join("bench");
    std::fs::create_dir_all(&folder).expect("a folder");
    std::fs::write(folder.join("results.md"), format!("{}\n{reach}", report.markdown(&head)))
        .expect("a file");
    let json = serde_json::json!({"about": head, "results": report.json()});
    std::fs::write(folder.join("results.json"), format!("{json:#}")).expect("a file");
    println!("written to {}", folder.display());
}

/// The description of the machine, the commit and the settings.
fn head() -> String {
    let said = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().ok();
        output
            .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
            .unwrap_or_default()
    };
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .unwrap_or(": unknown")
        .trim_start_matches([' ', '\t', ':']);
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!(
        "Machine: {cores} cores, {cpu}, Linux {}. Commit: {}. {}.\nPostgreSQL's settings besides its defaults: {}.\n\
         The service's: `concurrency = 64`, else its defaults.\n",
        said("uname", &["-r"]),
        said("git", &["describe", "--always", "--dirty"]),
        said(&tests::postgres::program("postgres").display().to_string(), &["--version"]),
        world::SETTINGS.map(|(name, value)| format!("`{name} = {value}`")).join(", "),
    )
}
