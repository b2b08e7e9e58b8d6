/** The command line, as tests start it. */
import "./quick.ts";
import { main } from "../../sdk/cli.ts";

process.exitCode = await main(process.argv.slice(2));
