//! `exec --git-credential`: git's side is documented in gitcredentials(7) and git-credential(1).

use std::io;

use zeroize::Zeroizing;

use super::Exec;
use crate::cli::args::credential;
use crate::cli::commands::not_found;
use crate::cli::failure::{Failure, cannot};
use crate::cli::{Context, output};

/// Answers git, which sends what it wants to know on standard input. Prints nothing for a host
/// without a mapping, so that git asks its next helper.
pub fn answer(args: &Exec, context: &Context) -> Result<(), Failure> {
    const EXAMPLE: &str = "git runs it, and adds what it wants; docs/programs.md has an example";

    let mappings = args.git_credential.iter().map(|mapping| {
        let mapping = mapping.split_once('=');
        let (host, name) =
            mapping.ok_or_else(|| Failure::usage("--git-credential needs HOST=NAMESPACE/KEY"))?;
        Ok((host, credential(name)?))
    });
    let mappings = mappings.collect::<Result<Vec<_>, Failure>>()?;
    let ([operation], []) = (&args.misplaced[..], &context.program[..]) else {
        return Err(Failure::usage("--git-credential runs no command").hint(EXAMPLE));
    };
    // git also sends `store` and `erase`. A helper ignores what it does not do.
    if operation != "get" {
        return Ok(());
    }
    let request = io::read_to_string(io::stdin()).map_err(cannot("read what git asks"))?;
    let field = |name| request.lines().find_map(|it| it.split_once('=').filter(|it| it.0 == name));
    // Over http, the password would be sent in the clear.
    let (Some((_, "https")), Some((_, host))) = (field("protocol"), field("host")) else {
        return Ok(());
    };
    let Some((_, at)) = mappings.iter().find(|(name, _)| name.eq_ignore_ascii_case(host)) else {
        return Ok(());
    };
    let client = context.client()?;
    let value = client.get(at)?.ok_or_else(|| not_found(at, &client))?;
    if value.expose().contains(['\n', '\0']) {
        let message = format!("git takes no line break in a password, and {at} has one");
        return Err(Failure::usage(message));
    }
    output::text(&Zeroizing::new(["password=", value.expose(), "\n"].concat()))
}
