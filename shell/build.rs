//! Tells cargo that the migrations are part of the program: `sqlx::migrate!` embeds them when it is compiled.

fn main() {
    println!("cargo:rerun-if-changed=../migrations");
}
