"""The options of `cloudhub token`, `node`, `user` and `serviceaccount`: who may join and who may use the API."""

from typing import Any

from hub.sharedoptions import add_api_options, add_output


def add_access(commands: Any) -> None:
    _token(commands)
    _user(commands)
    _service_account(commands)
    _node(commands)


def _token(commands: Any) -> None:
    token = commands.add_parser(
        "token", help="join tokens", description="Makes, lists and revokes join tokens for edge nodes."
    )
    actions = token.add_subparsers(title="commands", metavar="COMMAND", required=True)
    create = actions.add_parser(
        "create",
        help="makes a token and prints it, alone",
        description="Makes a join token through the API and prints it alone, for `edgelite join --token`. It is shown "
        "once; the hub keeps only a hash.",
    )
    whom = create.add_mutually_exclusive_group(required=True)
    whom.add_argument("--node", metavar="NAME", help="for the one node of this name")
    whom.add_argument(
        "--pool", metavar="POOL", help="for --count nodes, named POOL-<random> unless they choose a name"
    )
    whom.add_argument(
        "--from-file",
        metavar="FILE",
        help="a token for each line of a CSV file whose header names columns of node, pool, site, tenant, ttl, count; "
        "nothing is made unless all lines are valid",
    )
    create.add_argument("--count", metavar="N", type=int, help="how many nodes may join with a pool token")
    create.add_argument(
        "--site", metavar="SITE", help="the nodes' site: nodes of one site share a slot (default: none)"
    )
    create.add_argument("--tenant", metavar="TENANT", help="the nodes' tenant (default: default)")
    create.add_argument(
        "--ttl",
        metavar="DURATION",
        help="how long it can be used: 30m, 1h, 7d; at most 30d (default: 1h, for a pool 24h)",
    )
    create.add_argument(
        "--replace",
        action="store_true",
        help="the node may take the place of one of its name that has joined already, whose certificate is void then",
    )
    create.add_argument(
        "--approval",
        action="store_true",
        help="each node waits until it is approved: kubectl certificate approve",
    )
    create.add_argument(
        "-o",
        "--output",
        choices=("csv", "json"),
        help="form of the tokens that --from-file makes (default: csv)",
    )
    create.add_argument(
        "--output-file",
        metavar="FILE",
        help="where those are written, with mode 0600; an existing file is left alone (default: standard output)",
    )
    add_api_options(create)
    create.set_defaults(run="token_create")
    listing = actions.add_parser(
        "list", help="shows all tokens", description="Shows all join tokens, without their secrets."
    )
    add_output(listing)
    add_api_options(listing)
    listing.set_defaults(run="token_list")
    revoke = actions.add_parser(
        "revoke",
        help="ends tokens at once",
        description="Deletes join tokens: nobody joins with them any more, also who waits to be approved. Nodes that have "
        "joined stay.",
    )
    revoke.add_argument("id", metavar="ID", nargs="+", help="a token's id, as `token list` shows it")
    add_api_options(revoke)
    revoke.set_defaults(run="token_revoke")


def _node(commands: Any) -> None:
    node = commands.add_parser("node", help="single nodes", description="What is done to single nodes.")
    actions = node.add_subparsers(title="commands", metavar="COMMAND", required=True)
    allow = actions.add_parser(
        "allow-rejoin",
        help="lets a node join again with another key",
        description="Lets a machine that was set up anew join under the name of a node that has joined already, once. It "
        "needs a join token as ever. The certificate of the old key is void then.",
    )
    allow.add_argument("name", metavar="NAME", help="the node")
    allow.add_argument(
        "--for",
        dest="for_",
        metavar="DURATION",
        default="1h",
        help="how long the permission holds, at most 30d (default: 1h)",
    )
    add_api_options(allow)
    allow.set_defaults(run="node_allow_rejoin")


def _user(commands: Any) -> None:
    user = commands.add_parser(
        "user",
        help="users of the API",
        description="Users of the API; what they may do, roles and bindings say.",
    )
    actions = user.add_subparsers(title="commands", metavar="COMMAND", required=True)
    create = actions.add_parser(
        "create",
        help="makes a kubeconfig for a user",
        description="Makes a client certificate for a user and writes a kubeconfig (0600) with it. The user may do what is "
        "bound to its name or groups, and nothing before: kubectl create rolebinding B --clusterrole=edit --user=NAME. Making one takes the right to impersonate that "
        "user and these groups.",
    )
    create.add_argument("name", metavar="NAME", help="letters, digits, `.`, `_` and `-`, at most 64")
    create.add_argument("--group", metavar="GROUP", action="append", help="may be repeated (default: none)")
    create.add_argument(
        "--ttl", metavar="DURATION", default="90d", help="how long it lasts, 1m to 1825d (default: 90d)"
    )
    create.add_argument(
        "--server", metavar="URL", help="the API's URL in it (default: that of the kubeconfig used)"
    )
    create.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="where; an existing file is left alone (default: NAME.kubeconfig)",
    )
    add_api_options(create)
    create.set_defaults(run="user_create")
    show = actions.add_parser(
        "list",
        help="shows who is bound to which roles",
        description="Shows every user, group and service account that a binding names, and the role that it gives.",
    )
    add_api_options(show)
    show.set_defaults(run="user_list")


def _service_account(commands: Any) -> None:
    account = commands.add_parser(
        "serviceaccount",
        help="the keys that sign tokens of service accounts",
        description="The keys that sign tokens of service accounts. The accounts, and tokens, are made by kubectl.",
    )
    actions = account.add_subparsers(title="commands", metavar="COMMAND", required=True)
    keys = actions.add_parser(
        "keys",
        help="shows which key signs, and until when others verify",
        description="Shows the keys by their ids: which signs, and until when those before it verify.",
    )
    rotate = actions.add_parser(
        "rotate-keys",
        help="has another key sign tokens",
        description="Makes a key that signs tokens of service accounts from now on (10 s later where replicas share a store). "
        "Those before it verify until the last token that they may have signed has ended, 30 days. Backups hold the keys.",
    )
    rotate.add_argument(
        "--void",
        action="store_true",
        help="end all tokens that were issued so far, at once: for a key that somebody else has. Pods at the edge ask for a "
        "new token when 80%% of the old one's life has passed, or when they are made anew",
    )
    for action, run in ((keys, "serviceaccount_keys"), (rotate, "serviceaccount_rotate_keys")):
        add_output(action)
        add_api_options(action)
        action.set_defaults(run=run)
