//! The harness of the end-to-end tests: the real program as a child process, real databases, and
//! producers and downstreams in the test process. The scenarios are in the files of `tests/tests`.

pub mod address;
pub mod audit;
pub mod conformance;
pub mod database;
pub mod failure;
pub mod http;
pub mod load;
pub mod nginx;
pub mod openapi;
pub mod postgres;
pub mod producer;
pub mod program;
pub mod proxy;
pub mod recording;
pub mod rogue;
pub mod sink;
pub mod small_disk;
pub mod soak;
pub mod trial;
pub mod verdicts;
pub mod wait;

/// Creates two tests from each scenario, an `async fn(Database)`: one on SQLite and one on
/// PostgreSQL.
#[macro_export]
macro_rules! on_each_database {
    ($($scenario:ident),+ $(,)?) => {
        mod sqlite {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $scenario() {
                    super::$scenario($crate::database::Database::sqlite()).await;
                }
            )+
        }
        mod postgres {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $scenario() {
                    super::$scenario($crate::database::Database::postgres().await).await;
                }
            )+
        }
    };
}
