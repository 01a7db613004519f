# Tries the Windows folder on Windows, as an administrator: the service is installed, restarts after a failure, logs to the
# Application event log, and is gone after its removal.
param([Parameter(Mandatory)][string]$Zip)
$ErrorActionPreference = 'Stop'
$work = Join-Path $env:TEMP 'edgelite-try'
Expand-Archive -Force $Zip $work
$data = Join-Path $env:ProgramData 'edgelite'
New-Item -ItemType Directory -Force $data | Out-Null
'{"node":"try","trust_domain":"t","hub":"hub.t","edge":"127.0.0.1:1"}' | Set-Content -Encoding ascii (Join-Path $data 'node.json')
Set-Location (Join-Path $work 'edgelite')
& .\edgelite.cmd --version
if ($LASTEXITCODE -ne 0) { throw 'it does not start' }
& .\edgelite.cmd diagnose
if ($LASTEXITCODE -ne 1) { throw 'diagnose should find that the agent does not run' }
try { & .\install.ps1 } catch { "install.ps1: $_" }
$config = & sc.exe qfailure edgelite
if (-not ($config -match 'RESTART')) { throw "it is not started again after a failure: $config" }
if ((Get-Service edgelite).StartType -ne 'Automatic') { throw 'it is not started at boot' }
if (-not (Get-EventLog -LogName Application -Source edgelite -Newest 1)) { throw 'it has not logged' }
& .\install.ps1 -Remove
if (Get-Service edgelite -ErrorAction SilentlyContinue) { throw 'it was not removed' }
