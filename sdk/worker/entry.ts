/** What a worker starts with. */
import { serve } from "./serve.ts";
import { ownPort } from "./transport.ts";

void ownPort().then(serve);
