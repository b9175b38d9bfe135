//! The contract of the stores. Each clause of the ports of [`surehook::ports::Store`] is a function
//! over a database. It must hold on the model database, on PostgreSQL, on PostgreSQL behind a
//! pooler, and on SQLite. It must fail on each wrong store that is listed after it, which breaks what the clause guards. The list of a
//! module's clauses is at its top. Tests for one database only (a planner's choice, a restart) are in
//! separate modules.

/// Makes a test of each function on one kind of database.
macro_rules! tests_on {
    ($database:ident: $($name:ident,)+) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(crate::db::Db::$database().await).await;
            }
        )+
    };
}

/// Makes a test of each function that checks that it fails on each of its wrong stores.
macro_rules! red_on {
    ($database:ident, $wrong:ident: $($name:ident => [$($broken:ident)+],)+) => {
        $(
            #[tokio::test]
            async fn $name() {
                $(
                    let wrong = crate::wrong::$wrong::$broken;
                    let clause = super::$name(crate::db::Db::$database(wrong).await);
                    crate::wrong::assert_fails(clause, stringify!($broken)).await;
                )+
            }
        )+
    };
}

/// The clauses of a module, and for each the wrong stores on which it must fail. A clause without
/// one does not compile.
macro_rules! clauses {
    ($($name:ident => $($wrong:ident)|+,)+) => {
        mod model { tests_on! { memory: $($name,)+ } }
        mod postgres { tests_on! { postgres: $($name,)+ } }
        mod pooled { tests_on! { pooled: $($name,)+ } }
        mod sqlite { tests_on! { sqlite: $($name,)+ } }
        mod red { red_on! { wrong, Wrong: $($name => [$($wrong)+],)+ } }
    };
}

/// Clauses about connections and schemas, which the model does not have.
macro_rules! clauses_of_databases {
    ($($name:ident => $($wrong:ident)|+,)+) => {
        mod postgres_connections { tests_on! { postgres: $($name,)+ } }
        mod pooled_connections { tests_on! { pooled: $($name,)+ } }
        mod sqlite_connections { tests_on! { sqlite: $($name,)+ } }
        mod red_connections { red_on! { wrong_database, WrongDatabase: $($name => [$($wrong)+],)+ } }
    };
}

/// What both databases do beyond the contract of the port.
macro_rules! beyond_the_port {
    ($($name:ident,)+) => {
        mod postgres_beyond { tests_on! { postgres: $($name,)+ } }
        mod pooled_beyond { tests_on! { pooled: $($name,)+ } }
        mod sqlite_beyond { tests_on! { sqlite: $($name,)+ } }
    };
}

mod accept;
mod actions;
mod bulk;
mod claim;
mod concurrent;
mod db;
mod differential;
mod discard;
mod dropped;
mod due;
mod erase;
mod find;
mod later;
mod ping;
mod postgres_only;
mod prune;
mod redrive;
mod schema;
mod search;
mod settle;
mod sources;
mod sqlite_only;
mod statements;
mod summary;
mod transitions;
mod wrong;
