//! The file of a SQLite database: who can read it, which process can serve it, backups, and what
//! happens when it is damaged, missing or replaced.

use nix::sys::signal::Signal;
use sqlx::{AssertSqlSafe, Connection, SqliteConnection};
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tempfile::TempDir;
use tests::database::Database;
use tests::http::{Answer, Client};
use tests::program::{PROGRAM_VARIABLE, Process, Service, free_address, program, run};
use tests::sink::{self, Sink};
use tests::wait;

const TIMEOUT: Duration = Duration::from_secs(30);
const CANNOT_WAIT: i32 = 2;

struct World {
    folder: TempDir,
    sink: Sink,
}

impl World {
    async fn new() -> Self {
        Self {
            folder: TempDir::new().expect("a temporary folder"),
            sink: Sink::start(|_| sink::Answer::status(200)).await,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn url(&self) -> String {
        format!("sqlite:{}", self.path("surehook.db").display())
    }

    fn source(&self) -> String {
        format!("[sources.github]\ndestination = \"{}\"\n", self.sink.url("/github"))
    }

    async fn service(&self) -> Service {
        Service::start(&self.url(), &self.source()).await
    }

    /// Writes a configuration for a command into the folder. Returns its name.
    fn configured(&self, database: &str) -> String {
        let text = format!(
            "listen = \"{}\"\ndatabase = \"{database}\"\n{}",
            free_address(),
            self.source()
        );
        fs::write(self.path("surehook.toml"), text).expect("the folder can be written to");
        "surehook.toml".to_owned()
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let configuration = self.configured(&self.url());
        run(self.folder.path(), arguments.iter().copied().chain(["--config", &configuration]))
    }

    /// Runs `serve`, which must end by itself. Returns its exit code and its log.
    async fn refused(&self, database: &str) -> (Option<i32>, String) {
        let configuration = self.configured(database);
        let mut process = Process::start(self.folder.path(), ["serve", "--config", &configuration]);
        let status = process.wait(TIMEOUT).await;
        (status.code(), process.log())
    }
}

async fn post(service: &Service, key: &str) -> Answer {
    Client::default()
        .post(&service.url("/webhooks/github"), &[("idempotency-key", key)], "{}")
        .await
        .expect("a response")
}

async fn accepted(service: &Service, key: &str, replayed: bool) {
    let answer = post(service, key).await;
    assert_eq!(
        (answer.status_code, answer.header("idempotent-replayed") == "true"),
        (202, replayed),
        "{key}: {answer:?}"
    );
}

async fn ready_is(service: &Service, status_code: u16) {
    wait::until("the expected response of `/ready`", || async {
        let answer = Client::default().get(&service.url("/ready")).await?;
        if answer.status_code == status_code { Ok(()) } else { Err(format!("{answer:?}")) }
    })
    .await;
}

async fn stop(service: &mut Service) {
    service.signal(Signal::SIGTERM);
    assert!(service.wait(TIMEOUT).await.success());
}

fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap_or_else(|error| panic!("{}: {error}", path.display())).mode() & 0o777
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_owner_can_read_the_database_and_its_wal() {
    let world = World::new().await;
    let service = world.service().await;
    accepted(&service, "a", false).await;
    for name in ["surehook.db", "surehook.db-wal", "surehook.db-shm"] {
        assert_eq!(mode(&world.path(name)), 0o600, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_umask_does_not_change_the_database_file_mode() {
    for umask in ["000", "022", "277"] {
        let world = World::new().await;
        let configuration = world.configured(&world.url());
        let shell = Command::new("sh")
            .args(["-c", "umask \"$1\"; exec \"$0\" migrate --config \"$2\""])
            .arg(program())
            .args([umask, &configuration])
            .env_remove(PROGRAM_VARIABLE)
            .current_dir(world.folder.path())
            .output()
            .expect("a shell");
        assert!(shell.status.success(), "{}", said(&shell));
        assert_eq!(mode(&world.path("surehook.db")), 0o600, "umask {umask}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_database_file_is_logged_once_with_its_absolute_path() {
    const MESSAGE: &str = "\"message\":\"new database file created\"";
    let world = World::new().await;
    let mut service = Service::start("sqlite:here.db", &world.source()).await;
    let created = |service: &Service| -> Vec<String> {
        service.log().lines().filter(|line| line.contains(MESSAGE)).map(str::to_owned).collect()
    };
    let lines = created(&service);
    let line: serde_json::Value = serde_json::from_str(&lines[0]).expect("a line of JSON");
    let path = Path::new(line["path"].as_str().expect("a path"));
    assert!(path.is_absolute() && path.ends_with("here.db") && path.exists(), "{line}");
    stop(&mut service).await;
    service.restart().await;
    assert_eq!(created(&service).len(), 1, "the file exists already");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_process_on_one_file_is_refused() {
    let world = World::new().await;
    let mut service = world.service().await;
    accepted(&service, "a", false).await;
    symlink(world.folder.path(), world.path("elsewhere")).expect("a link can be created");
    for database in
        [world.url(), format!("sqlite:{}", world.path("elsewhere/surehook.db").display())]
    {
        let (code, log) = world.refused(&database).await;
        assert_eq!(code, Some(CANNOT_WAIT), "{log}");
        assert!(
            log.contains("is served by another process (") && log.contains("surehook.db"),
            "{log}"
        );
    }
    accepted(&service, "b", false).await;
    let listed = run(world.folder.path(), ["events", "list", "--url", &service.url("")]);
    assert!(listed.status.success(), "{}", said(&listed));

    service.kill();

    service.restart().await;
    accepted(&service, "a", true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unusable_database_path_fails_the_start() {
    let world = World::new().await;
    fs::create_dir(world.path("a-folder")).expect("the folder can be written to");
    for (name, why) in
        [("nowhere/surehook.db", "its folder does not exist"), ("a-folder", "it is not a file")]
    {
        let path = world.path(name);
        let (code, log) = world.refused(&format!("sqlite:{}", path.display())).await;
        assert_eq!(code, Some(CANNOT_WAIT), "{log}");
        assert!(log.contains(&path.display().to_string()) && log.contains(why), "{log}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_without_write_permission_fails_the_start() {
    const NOBODY: u32 = 65_534;
    let world = World::new().await;
    let migrated = world.run(&["migrate"]);
    assert!(migrated.status.success(), "{}", said(&migrated));
    fs::set_permissions(world.path("surehook.db"), Permissions::from_mode(0o444))
        .expect("the owner can change the mode");
    // Root can write to every file, so another user runs the program.
    let is_root = nix::unistd::Uid::effective().is_root();
    let copy = world.path("program");
    let program = if is_root {
        fs::copy(program(), &copy).expect("the disk has space");
        chown(world.folder.path(), Some(NOBODY), Some(NOBODY)).expect("root can change the owner");
        &copy
    } else {
        program()
    };
    let mut command = Command::new(program);
    command.args(["serve", "--config", "surehook.toml"]).current_dir(world.folder.path());
    command.env_remove(PROGRAM_VARIABLE);
    if is_root {
        command.uid(NOBODY).gid(NOBODY);
    }
    let mut child =
        command.stderr(std::process::Stdio::piped()).spawn().expect("the program starts");
    let ended = wait::within(TIMEOUT, "the program to end", || {
        let ended = child
            .try_wait()
            .expect("a child can be waited for")
            .ok_or_else(|| "it still runs".to_owned());
        async { ended }
    });
    let status = ended.await;
    let output = child.wait_with_output().expect("the program has ended");
    assert_eq!(status.code(), Some(CANNOT_WAIT), "{}", said(&output));
    assert!(
        said(&output).contains("surehook.db cannot be opened: Permission denied"),
        "{}",
        said(&output)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_clean_shutdown_the_file_alone_is_the_database() {
    let world = World::new().await;
    let mut service = world.service().await;
    accepted(&service, "a", false).await;
    world.sink.reaches(1).await;
    stop(&mut service).await;
    for name in ["surehook.db-wal", "surehook.db-shm"] {
        assert!(!world.path(name).exists(), "{name} is left behind");
    }
    let copied = Database::sqlite();
    let to = copied.url();
    fs::copy(world.path("surehook.db"), to.trim_start_matches("sqlite:"))
        .expect("a file can be copied");
    let service = Service::start(&to, &world.source()).await;
    accepted(&service, "a", true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_taken_while_serving_can_be_restored_after_a_stop() {
    let world = World::new().await;
    let mut service = world.service().await;
    accepted(&service, "before", false).await;

    let backup = world.run(&["backup", "backup.db"]);

    assert!(backup.status.success(), "{}", said(&backup));
    assert_eq!(mode(&world.path("backup.db")), 0o600);
    accepted(&service, "after", false).await;
    let again = world.run(&["backup", "backup.db"]);
    assert!(
        !again.status.success() && said(&again).contains("backup.db exists"),
        "{}",
        said(&again)
    );
    let refused = world.run(&["restore", "backup.db"]);
    assert!(
        !refused.status.success() && said(&refused).contains("is served by another process"),
        "{}",
        said(&refused)
    );
    accepted(&service, "after", true).await;

    // After a kill, the WAL contains changes that are not in the file.
    service.kill();
    let restored = world.run(&["restore", "backup.db"]);
    assert!(restored.status.success(), "{}", said(&restored));
    service.restart().await;
    accepted(&service, "before", true).await;
    accepted(&service, "after", false).await;
    stop(&mut service).await;

    // The replaced database is complete, too.
    fs::remove_file(world.path("surehook.db")).expect("the file exists");
    let kept = world.run(&["restore", "surehook.db-replaced"]);
    assert!(
        !kept.status.success() && said(&kept).contains("surehook.db-replaced exists"),
        "{}",
        said(&kept)
    );
    fs::rename(world.path("surehook.db-replaced"), world.path("old.db")).expect("the file exists");
    let kept = world.run(&["restore", "old.db"]);
    assert!(kept.status.success(), "{}", said(&kept));
    service.restart().await;
    accepted(&service, "after", true).await;
}

/// If a restore is killed while there is none, the next start serves a new, empty database.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn there_is_a_database_at_the_path_at_any_time_of_a_restore() {
    let world = World::new().await;
    let mut service = world.service().await;
    accepted(&service, "a", false).await;
    stop(&mut service).await;
    assert!(world.run(&["backup", "backup.db"]).status.success());
    let is_over = AtomicBool::new(false);
    let missing = std::thread::scope(|scope| {
        let looking = scope.spawn(|| {
            let mut missing = 0;
            while !is_over.load(Ordering::Relaxed) {
                missing += u32::from(!world.path("surehook.db").exists());
            }
            missing
        });
        for n in 0..50 {
            let restored = world.run(&["restore", "backup.db"]);
            assert!(restored.status.success(), "{}", said(&restored));
            fs::rename(world.path("surehook.db-replaced"), world.path(&format!("old-{n}.db")))
                .expect("the old database is kept");
        }
        is_over.store(true, Ordering::Relaxed);
        looking.join().expect("no panic")
    });
    assert_eq!(missing, 0, "times that there was no file");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_backups_do_not_write_the_same_file() {
    let world = World::new().await;
    let _service = world.service().await;
    let partial = world.path("backup.db-partial");
    fs::write(&partial, "of another process").expect("a file");

    let refused = world.run(&["backup", "backup.db"]);

    assert!(
        !refused.status.success()
            && said(&refused).contains("backup.db-partial exists: another process is writing it"),
        "{}",
        said(&refused)
    );
    assert_eq!(fs::read_to_string(&partial).expect("the file"), "of another process");
    fs::remove_file(&partial).expect("the file exists");
    let backup = world.run(&["backup", "backup.db"]);
    assert!(backup.status.success(), "{}", said(&backup));
    assert!(!partial.exists());
    is_undamaged(&world.path("backup.db")).await;
}

/// SQLite applies a log to whatever database is at its path.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_without_its_database_is_not_applied_to_a_restored_one() {
    let world = World::new().await;
    let mut service = world.service().await;
    accepted(&service, "before", false).await;
    let backup = world.run(&["backup", "backup.db"]);
    assert!(backup.status.success(), "{}", said(&backup));
    for n in 0..50 {
        accepted(&service, &format!("after-{n}"), false).await;
    }
    service.kill();
    assert!(world.path("surehook.db-wal").metadata().expect("a log").len() > 0);
    fs::rename(world.path("surehook.db"), world.path("broken.db")).expect("the file exists");

    let restored = world.run(&["restore", "backup.db"]);

    assert!(restored.status.success(), "{}", said(&restored));
    assert!(world.path("surehook.db-replaced-wal").exists(), "the log is kept");
    service.restart().await;
    accepted(&service, "before", true).await;
    for n in 0..50 {
        accepted(&service, &format!("after-{n}"), false).await;
    }
    is_undamaged(&world.path("surehook.db")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_replaced_the_database_is_served_after_a_restart() {
    let world = World::new().await;
    let mut service = world.service().await;
    accepted(&service, "a", false).await;
    let backup = world.run(&["backup", "backup.db"]);
    assert!(backup.status.success(), "{}", said(&backup));
    for n in 0..50 {
        accepted(&service, &format!("after-{n}"), false).await;
    }
    fs::rename(world.path("surehook.db"), world.path("aside.db")).expect("the file exists");
    fs::rename(world.path("backup.db"), world.path("surehook.db")).expect("the file exists");
    ready_is(&service, 503).await;
    stop(&mut service).await;
    is_undamaged(&world.path("surehook.db")).await;
    service.restart().await;
    for (key, replayed) in [("a", true), ("after-0", false), ("after-49", false)] {
        accepted(&service, key, replayed).await;
    }
    stop(&mut service).await;

    // What was moved is complete.
    fs::rename(world.path("aside.db"), world.path("surehook.db")).expect("the file exists");
    service.restart().await;
    accepted(&service, "after-49", true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_another_connection_still_uses_is_reported_at_the_shutdown() {
    let world = World::new().await;
    let mut service = world.service().await;
    accepted(&service, "a", false).await;
    let mut reader = SqliteConnection::connect(&world.url()).await.expect("a database");
    sqlx::raw_sql("begin; select count(*) from events").execute(&mut reader).await.expect("a read");
    accepted(&service, "b", false).await;
    stop(&mut service).await;
    let log = service.log();
    assert!(log.contains("write-ahead log not emptied at shutdown"), "{log}");
    assert!(log.contains("another connection is still using it"), "{log}");
}

async fn is_undamaged(database: &Path) {
    let url = format!("sqlite:{}", database.display());
    let mut connection = SqliteConnection::connect(&url).await.expect("a database");
    let check: String = sqlx::query_scalar("pragma integrity_check")
        .fetch_one(&mut connection)
        .await
        .expect("a result");
    assert_eq!(check, "ok");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_no_backup_is_not_restored() {
    let world = World::new().await;
    let mut service = world.service().await;
    accepted(&service, "a", false).await;
    stop(&mut service).await;
    fs::write(
        world.path("text.db"),
        "not a database, though long enough for its first bytes to be read as a header".repeat(20),
    )
    .expect("the folder can be written to");
    let mut other =
        SqliteConnection::connect(&format!("sqlite:{}?mode=rwc", world.path("other.db").display()))
            .await
            .expect("a database can be created");
    sqlx::raw_sql("create table things (name text)")
        .execute(&mut other)
        .await
        .expect("a table can be created");
    other.close().await.expect("the connection can be closed");
    for (name, why) in [
        ("text.db", "is damaged, or is not a SQLite database"),
        ("other.db", "not a database of surehook"),
        ("missing.db", "there is no database"),
    ] {
        let refused = world.run(&["restore", name]);
        assert!(
            !refused.status.success() && said(&refused).contains(why),
            "{name}: {}",
            said(&refused)
        );
    }
    service.restart().await;
    accepted(&service, "a", true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_postgresql_backup_and_restore_refer_to_pg_dump() {
    let world = World::new().await;
    let configuration = world.configured("postgres://127.0.0.1:9/surehook");
    for command in ["backup", "restore"] {
        let output = run(world.folder.path(), [command, "copy.db", "--config", &configuration]);
        assert_eq!(output.status.code(), Some(CANNOT_WAIT), "{}", said(&output));
        assert!(said(&output).contains("pg_dump"), "{}", said(&output));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_no_database_ends_the_process() {
    let world = World::new().await;
    fs::write(world.path("surehook.db"), "not a database".repeat(1000))
        .expect("the folder can be written to");
    let (code, log) = world.refused(&world.url()).await;
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("is damaged, or is not a SQLite database"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_database_ends_the_process() {
    let world = World::new().await;
    let mut service = world.service().await;
    accepted(&service, "a", false).await;
    stop(&mut service).await;
    let mut connection =
        SqliteConnection::connect(&world.url()).await.expect("the database exists");
    let pages = "select rootpage from sqlite_schema where tbl_name in ('events', 'deliveries') and rootpage > 0";
    let pages: Vec<u32> = sqlx::query_scalar(AssertSqlSafe(pages))
        .fetch_all(&mut connection)
        .await
        .expect("the tables exist");
    let size: u32 = sqlx::query_scalar("pragma page_size")
        .fetch_one(&mut connection)
        .await
        .expect("the page size can be read");
    connection.close().await.expect("the connection can be closed");
    let file =
        File::options().write(true).open(world.path("surehook.db")).expect("the database exists");
    for page in pages {
        file.write_all_at(&vec![0xA5; size as usize], u64::from(page - 1) * u64::from(size))
            .expect("the file can be written to");
    }
    drop(file);
    let (code, log) = world.refused(&world.url()).await;
    assert_eq!(code, Some(1), "{log}");
    assert!(
        log.contains("is damaged, or is not a SQLite database")
            && log.contains("surehook restore FILE"),
        "{log}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_acknowledged_while_the_database_file_is_replaced() {
    let world = World::new().await;
    let mut service = world.service().await;
    accepted(&service, "a", false).await;
    let (path, aside) = (world.path("surehook.db"), world.path("aside.db"));

    fs::rename(&path, &aside).expect("the file exists");

    let answer = post(&service, "b").await;
    assert_eq!(answer.status_code, 503, "{answer:?}");
    ready_is(&service, 503).await;
    fs::copy(&aside, &path).expect("a file can be copied");
    let answer = post(&service, "c").await;
    assert_eq!(answer.status_code, 503, "{answer:?}");
    assert!(
        service.log().contains("the database file was moved, deleted or replaced"),
        "{}",
        service.log()
    );

    fs::rename(&aside, &path).expect("the file exists");

    ready_is(&service, 200).await;
    accepted(&service, "d", false).await;
    stop(&mut service).await;
    service.restart().await;
    for (key, replayed) in [("a", true), ("b", false), ("c", false), ("d", true)] {
        accepted(&service, key, replayed).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_file_is_noticed_before_the_next_acknowledgement() {
    let world = World::new().await;
    let service = world.service().await;
    accepted(&service, "a", false).await;
    for name in ["surehook.db", "surehook.db-wal", "surehook.db-shm"] {
        fs::remove_file(world.path(name)).expect("the file exists");
    }
    let answer = post(&service, "b").await;
    assert_eq!(answer.status_code, 503, "{answer:?}");
    ready_is(&service, 503).await;
}
