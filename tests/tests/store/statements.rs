//! The statements of both databases, read from their files. So a test of every statement covers those
//! that are added later.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// The statements of one database (`postgres` or `sqlite`), and those that both share, by the name
/// of their file.
pub(crate) fn of(database: &str) -> BTreeMap<String, String> {
    let store = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shell/src/store");
    let files = [store.clone(), store.join(database)].into_iter().flat_map(|folder| {
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>()
    });
    let statements: BTreeMap<String, String> = files
        .filter(|file| file.extension().is_some_and(|extension| extension == "sql"))
        .map(|file| {
            let name = file.file_stem().unwrap().to_str().unwrap().to_owned();
            (name, fs::read_to_string(file).unwrap())
        })
        .collect();
    assert!(statements.len() > 15, "{statements:?}");
    statements
}

/// Citus sends the statements on to the server that has the schema. It takes them only in these
/// forms.
#[test]
fn the_statements_on_postgresql_have_forms_that_a_distributed_engine_takes() {
    for (name, statement) in of("postgres") {
        let code: Vec<&str> = statement.lines().filter(|line| !line.starts_with("--")).collect();
        let code = code.join("\n");
        // It evaluates the time before it sends a statement on, but refuses functions that depend
        // on it within a `case` or a `coalesce`. The sum of a time and an interval is one of them.
        let mut cases = 0;
        for word in code.split(|character: char| !(character.is_alphanumeric() || character == '_'))
        {
            match word {
                "case" => cases += 1,
                "end" => cases -= 1,
                "statement_timestamp" | "interval" => {
                    assert_eq!(cases, 0, "{name}: `{word}` within a `case`");
                }
                _ => {}
            }
        }
        for arguments in code.split("coalesce(").skip(1) {
            let mut depth = 1;
            let end = arguments.find(|character| {
                depth += i32::from(character == '(') - i32::from(character == ')');
                depth == 0
            });
            let arguments = &arguments[..end.expect("parentheses are paired")];
            assert!(!arguments.contains("statement_timestamp"), "{name}: coalesce({arguments})");
        }
        // Some databases have no places of rows.
        assert!(!code.contains("ctid"), "{name}: ctid");
        // Some databases refuse two changes of one table in one statement.
        let mut changed = BTreeSet::new();
        for change in ["insert into ", "update ", "delete from "] {
            for rest in code.split(change).skip(1) {
                let table: String =
                    rest.chars().take_while(|character| character.is_alphabetic()).collect();
                // `for update skip locked`, `do update set`, `for update` at the end of a line.
                let is_table = !["", "skip", "set"].contains(&table.as_str());
                assert!(!is_table || changed.insert(table.clone()), "{name} changes {table} twice");
            }
        }
        // It writes the statement anew. A test of a constant for null is then a syntax error.
        assert!(!code.contains("(select true as"), "{name}: a constant that may be null");
        // Each column of a subquery needs a name.
        for line in code.lines().map(str::trim) {
            let unnamed = line.ends_with(", false") || line.ends_with(", true");
            assert!(!unnamed, "{name}: a column without a name: {line}");
            assert!(!line.starts_with("select unnest("), "{name}: a column without a name: {line}");
        }
    }
}

/// Each command of a migration is sent by itself, because a distributed engine takes one at a time.
#[test]
fn the_commands_of_a_migration_end_at_line_ends() {
    for migration in surehook::store::postgres::sql::migrator().iter() {
        for command in surehook::store::postgres::sql::commands(migration.sql.as_str()) {
            let code: Vec<&str> = command.lines().filter(|line| !line.starts_with("--")).collect();
            let code = code.join("\n");
            let code = code.trim();
            assert!(!code.trim_end_matches(';').contains(';'), "two commands: {code}");
            assert!(
                !code.contains('$') && code.matches('\'').count().is_multiple_of(2),
                "cut: {code}"
            );
        }
    }
}
