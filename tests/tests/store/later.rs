//! A database that does not exist yet.

use crate::db::{Db, Raw};
use surehook::store::OpenStore;
use uuid::Uuid;

pub(crate) struct Later {
    url: String,
    /// What must be created so that it exists: a database of the shared server, or a folder.
    what: Missing,
    _beside: Db,
}

enum Missing {
    Database(String),
    Folder(std::path::PathBuf),
}

impl Later {
    /// A missing database beside an existing one, of the same kind.
    pub(crate) fn beside(db: Db) -> Self {
        let (url, what) = match (&db.raw, &db.folder) {
            (Raw::Sqlite(_), Some(folder)) => {
                let missing = folder.path().join("later");
                (
                    format!("sqlite:{}", missing.join("surehook.db").display()),
                    Missing::Folder(missing),
                )
            }
            _ => {
                let name = format!("later_{}", Uuid::now_v7().simple());
                (tests::postgres::shared().url(&name), Missing::Database(name))
            }
        };
        Self { url, what, _beside: db }
    }

    pub(crate) fn open(&self) -> OpenStore {
        crate::db::open(&self.url)
    }

    /// Creates it, without a schema.
    pub(crate) async fn come(&self) {
        match &self.what {
            Missing::Database(name) => {
                tests::postgres::shared().execute(&format!("create database {name}")).await;
            }
            Missing::Folder(folder) => std::fs::create_dir(folder).unwrap(),
        }
    }
}
