//! A private Pgpool before a cluster, with its own defaults. See [`super::pgbouncer`].

use super::pgbouncer::{Pooler, new_folder};
use super::{Cluster, free_port};
use std::path::Path;

/// How Pgpool treats its servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clustering {
    /// Like any others.
    Raw,
    /// As a primary and its standbys.
    Streaming,
}

/// Starts the Pgpool that `program` names.
///
/// # Panics
///
/// If it does not start.
pub async fn start(cluster: &Cluster, clustering: Clustering, program: &Path) -> Pooler {
    let mode = match clustering {
        Clustering::Raw => "raw",
        Clustering::Streaming => "streaming_replication",
    };
    let (port, server, folder) = (free_port(), cluster.port(), new_folder("pgpool"));
    let here = folder.display();
    let configuration = format!(
        "backend_clustering_mode = '{mode}'\nlisten_addresses = '127.0.0.1'\nport = {port}\n\
         pcp_listen_addresses = ''\npcp_socket_dir = '{here}'\nunix_socket_directories = '{here}'\n\
         socket_dir = '{here}'\npid_file_name = '{here}/pid'\nlogdir = '{here}'\nsr_check_period = 0\n\
         backend_hostname0 = '127.0.0.1'\nbackend_port0 = {server}\nnum_init_children = 64\n"
    );
    let files = [("pgpool.conf", &*configuration), ("pcp.conf", ""), ("pool_passwd", "")];
    let arguments = ["-n", "-f", "pgpool.conf", "-F", "pcp.conf"];
    Pooler::start(program, &arguments, &folder, &files, port).await
}
